/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The thread of each device of the Xen drivers in Rust, and its counters.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/errno.h>
#include <sys/kernel.h>
#include <sys/kmem.h>
#include <sys/kthread.h>
#include <sys/sysctl.h>

#include "xenpv_var.h"

void
xenpv_device_init(struct xenpv_device *xd, device_t dev, int ipl,
    unsigned int events, void (*intr)(void *, unsigned int),
    int (*step)(void *), void *arg)
{

	xenpv_check_abi();

	xd->xd_dev = dev;
	xd->xd_ipl = ipl;
	xd->xd_intr = intr;
	xd->xd_step = step;
	xd->xd_arg = arg;
	mutex_init(&xd->xd_lock, MUTEX_DEFAULT, IPL_VM);
	cv_init(&xd->xd_cv, "xenpv");
	xd->xd_kicked = xd->xd_stop = false;
	xd->xd_lwp = NULL;
	xd->xd_events = kmem_zalloc(events * sizeof(*xd->xd_events), KM_SLEEP);
	xd->xd_count = events;
}

static void
xenpv_device_thread(void *arg)
{
	struct xenpv_device *xd = arg;
	int timo = 0;

	mutex_enter(&xd->xd_lock);
	for (;;) {
		while (!xd->xd_kicked && !xd->xd_stop) {
			if (timo == 0)
				cv_wait(&xd->xd_cv, &xd->xd_lock);
			else if (cv_timedwait(&xd->xd_cv, &xd->xd_lock,
			    timo) != 0)
				break;
		}
		if (xd->xd_stop)
			break;
		xd->xd_kicked = false;
		mutex_exit(&xd->xd_lock);
		timo = xd->xd_step(xd->xd_arg);
		xenpv_pages_reap();
		mutex_enter(&xd->xd_lock);
	}
	mutex_exit(&xd->xd_lock);
	kthread_exit(0);
}

int
xenpv_device_start(struct xenpv_device *xd)
{

	return kthread_create(PRI_NONE, KTHREAD_MPSAFE | KTHREAD_MUSTJOIN,
	    NULL, xenpv_device_thread, xd, &xd->xd_lwp, "%s",
	    device_xname(xd->xd_dev));
}

/* Calls the device's step soon. From any context up to IPL_VM. */
void
xenpv_device_kick(struct xenpv_device *xd)
{

	mutex_enter(&xd->xd_lock);
	xd->xd_kicked = true;
	cv_signal(&xd->xd_cv);
	mutex_exit(&xd->xd_lock);
}

/* Waits until the thread has left. */
void
xenpv_device_stop(struct xenpv_device *xd)
{

	if (xd->xd_lwp == NULL)
		return;
	mutex_enter(&xd->xd_lock);
	xd->xd_stop = true;
	cv_signal(&xd->xd_cv);
	mutex_exit(&xd->xd_lock);
	kthread_join(xd->xd_lwp);
	xd->xd_lwp = NULL;
}

void
xenpv_device_destroy(struct xenpv_device *xd)
{
	unsigned int i;

	KASSERT(xd->xd_lwp == NULL);
	for (i = 0; i < xd->xd_count; i++)
		KASSERT(xd->xd_events[i].xe_ih == NULL);
	kmem_free(xd->xd_events, xd->xd_count * sizeof(*xd->xd_events));
	cv_destroy(&xd->xd_cv);
	mutex_destroy(&xd->xd_lock);
}

/*
 * Counters.
 */

static int
xenpv_counter(SYSCTLFN_ARGS)
{
	struct sysctlnode node = *rnode;
	struct xenpv_counters *xc = node.sysctl_data;
	uint64_t all[XENPV_COUNTERS_MAX / sizeof(uint64_t)];
	uint64_t value;
	unsigned int i;

	for (i = 0; i < xc->xc_count; i++) {
		if (strcmp(node.sysctl_name, xc->xc_list[i].xc_name) == 0)
			break;
	}
	if (i == xc->xc_count)
		return ENOENT;
	xc->xc_fetch(xc->xc_arg, all);
	memcpy(&value, (const char *)all + xc->xc_list[i].xc_offset,
	    sizeof(value));
	node.sysctl_data = &value;
	return sysctl_lookup(SYSCTLFN_CALL(&node));
}

void
xenpv_counters_attach(struct xenpv_counters *xc, device_t dev)
{
	const struct sysctlnode *parent;
	unsigned int i;

	if (sysctl_createv(&xc->xc_log, 0, NULL, &parent, 0, CTLTYPE_NODE,
	    device_xname(dev), SYSCTL_DESCR("Xen device"),
	    NULL, 0, NULL, 0, CTL_HW, CTL_CREATE, CTL_EOL) != 0) {
		aprint_error_dev(dev, "no counters\n");
		return;
	}
	for (i = 0; i < xc->xc_count; i++) {
		sysctl_createv(&xc->xc_log, 0, &parent, NULL,
		    CTLFLAG_READONLY, CTLTYPE_QUAD, xc->xc_list[i].xc_name,
		    SYSCTL_DESCR(xc->xc_list[i].xc_about), xenpv_counter,
		    0, (void *)xc, 0, CTL_CREATE, CTL_EOL);
	}
}

void
xenpv_counters_detach(struct xenpv_counters *xc)
{

	sysctl_teardown(&xc->xc_log);
}
