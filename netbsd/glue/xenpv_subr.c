/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the Xen drivers in Rust ask of the kernel: xenpv.h, "up-calls".
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/atomic.h>
#include <sys/cpu.h>
#include <sys/errno.h>
#include <sys/kmem.h>
#include <sys/malloc.h>
#include <sys/once.h>
#include <sys/proc.h>
#include <sys/time.h>

#include <uvm/uvm_extern.h>

#include <xen/intr.h>
#include <xen/hypervisor.h>
#include <xen/evtchn.h>
#include <xen/xenbus.h>
#include <xen/xenpmap.h>

#include "xenpv_var.h"

/* Errors cross the interface as NetBSD's numbers. */
CTASSERT(XENPV_EPERM == EPERM);
CTASSERT(XENPV_ENOENT == ENOENT);
CTASSERT(XENPV_ESRCH == ESRCH);
CTASSERT(XENPV_EIO == EIO);
CTASSERT(XENPV_ENXIO == ENXIO);
CTASSERT(XENPV_E2BIG == E2BIG);
CTASSERT(XENPV_ENOMEM == ENOMEM);
CTASSERT(XENPV_EACCES == EACCES);
CTASSERT(XENPV_EFAULT == EFAULT);
CTASSERT(XENPV_EBUSY == EBUSY);
CTASSERT(XENPV_EEXIST == EEXIST);
CTASSERT(XENPV_EINVAL == EINVAL);
CTASSERT(XENPV_ENOSPC == ENOSPC);
CTASSERT(XENPV_EROFS == EROFS);
CTASSERT(XENPV_EAGAIN == EAGAIN);
CTASSERT(XENPV_EOPNOTSUPP == EOPNOTSUPP);
CTASSERT(XENPV_ETIMEDOUT == ETIMEDOUT);
CTASSERT(XENPV_ENOSYS == ENOSYS);
CTASSERT(XENPV_EBADMSG == EBADMSG);
/* What crosses it by address is the same on both sides. */
CTASSERT(sizeof(struct xenpv_xbd_info) == 24);
CTASSERT(sizeof(struct xenpv_xbd_counters) == 104);
CTASSERT(sizeof(struct xenpv_cons_counters) == 24);
CTASSERT(sizeof(struct xenpv_grant_counters) == 16);
/* Xen's pages, and so grants, are of this size. */
CTASSERT(PAGE_SIZE == 4096);

/* The object may be older than the header, or newer. */
void
xenpv_check_abi(void)
{

	if (xenpv_abi() != XENPV_ABI)
		panic("xenpv: the library has interface %u, its header %u",
		    xenpv_abi(), XENPV_ABI);
}

/*
 * Memory.
 */

static bool
xenpv_may_sleep(void)
{

	bool none;

	if (cpu_intr_p() || cpu_softintr_p())
		return false;
	/* Below a spin mutex the level is raised. */
	kpreempt_disable();
	none = curcpu()->ci_ilevel == IPL_NONE;
	kpreempt_enable();
	return none;
}

void *
xenpv_alloc(size_t size)
{

	return kmem_intr_alloc(size,
	    xenpv_may_sleep() ? KM_SLEEP : KM_NOSLEEP);
}

void
xenpv_free(void *p, size_t size)
{

	kmem_intr_free(p, size);
}

/*
 * Pages that were given up where the kernel's map can't be entered: in an
 * interrupt, or below a spin mutex. Each piece has its size and the next one
 * in itself.
 */
struct xenpv_piece {
	struct xenpv_piece	*xp_next;
	size_t			xp_count;
};

static void *volatile xenpv_given_up;

void
xenpv_pages_reap(void)
{
	struct xenpv_piece *xp, *next;

	for (xp = atomic_swap_ptr(&xenpv_given_up, NULL); xp != NULL;
	    xp = next) {
		next = xp->xp_next;
		uvm_km_free(kernel_map, (vaddr_t)xp, xp->xp_count * PAGE_SIZE,
		    UVM_KMF_WIRED);
	}
}

void *
xenpv_pages_alloc(size_t count, bool backed)
{
	vaddr_t va;

	xenpv_pages_reap();
	va = uvm_km_alloc(kernel_map, count * PAGE_SIZE, PAGE_SIZE,
	    backed ? UVM_KMF_WIRED | UVM_KMF_ZERO | UVM_KMF_CANFAIL :
	    UVM_KMF_VAONLY);
	return (void *)va;
}

void
xenpv_pages_free(void *va, size_t count, bool backed)
{
	struct xenpv_piece *xp = va;
	void *first;

	if (!backed || xenpv_may_sleep()) {
		uvm_km_free(kernel_map, (vaddr_t)va, count * PAGE_SIZE,
		    backed ? UVM_KMF_WIRED : UVM_KMF_VAONLY);
		return;
	}
	xp->xp_count = count;
	do {
		first = xenpv_given_up;
		xp->xp_next = first;
	} while (atomic_cas_ptr(&xenpv_given_up, first, xp) != first);
}

uint64_t
xenpv_frame(const void *va)
{
	paddr_t pa;

#if defined(XENPV) || __NetBSD_Version__ < 900000000
	/* Before 9, all of Xen is PV. */
	if (!pmap_extract_ma(pmap_kernel(), (vaddr_t)va, &pa))
#else
	if (!pmap_extract(pmap_kernel(), (vaddr_t)va, &pa))
#endif
		panic("xenpv: no page at %p", va);
	return pa >> PAGE_SHIFT;
}

/*
 * Interrupt level, locks, time.
 */

int
xenpv_splvm(void)
{

	return splvm();
}

void
xenpv_splx(int s)
{

	splx(s);
}

void
xenpv_mutex_enter(void *mtx)
{

	mutex_enter(mtx);
}

void
xenpv_mutex_exit(void *mtx)
{

	mutex_exit(mtx);
}

uint64_t
xenpv_uptime_ns(void)
{
	struct timespec ts;

	nanouptime(&ts);
	return (uint64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

void
xenpv_delay_us(uint32_t us)
{

	DELAY(us);
}

/*
 * Log and panic.
 */

void
xenpv_log(int level, const char *name, const char *line, size_t len)
{

	switch (level) {
	case XENPV_LOG_DEBUG:
		aprint_debug("%s: %.*s\n", name, (int)len, line);
		break;
	case XENPV_LOG_INFO:
		aprint_verbose("%s: %.*s\n", name, (int)len, line);
		break;
	default:
		printf("%s: %s%.*s\n", name,
		    level == XENPV_LOG_ERROR ? "error: " : "", (int)len, line);
		break;
	}
}

void
xenpv_panic(const char *message, size_t len)
{

	panic("%.*s", (int)len, message);
}

/*
 * Interrupts.
 */

/* On which CPU is the port's: that may not change meanwhile. */
struct intrhand *
xenpv_intr_establish(unsigned int port, int ipl, int (*func)(void *),
    void *arg, bool mpsafe, const char *name)
{
	struct intrhand *ih;

#if __NetBSD_Version__ >= 900000000
	const int bound = curlwp_bind();

	ih = xen_intr_establish_xname(-1, &xen_pic, port, IST_LEVEL, ipl,
	    func, arg, mpsafe, name);
	curlwp_bindx(bound);
	if (ih != NULL)
		hypervisor_unmask_event(port);
#else
	/* These know no handle: any address says that it is there. */
	ih = event_set_handler(port, func, arg, ipl, name) == 0 ?
	    (struct intrhand *)arg : NULL;
	if (ih != NULL)
		hypervisor_enable_event(port);
#endif
	return ih;
}

void
xenpv_intr_disestablish(struct intrhand *ih, unsigned int port,
    int (*func)(void *), void *arg)
{

	hypervisor_mask_event(port);
#if __NetBSD_Version__ >= 900000000
	const int bound = curlwp_bind();

	xen_intr_disestablish(ih);
	curlwp_bindx(bound);
#else
	event_remove_handler(port, func, arg);
#endif
}

static int
xenpv_intr(void *arg)
{
	struct xenpv_event *xe = arg;
	struct xenpv_device *xd = xe->xe_device;

	xd->xd_intr(xd->xd_arg, xe->xe_port);
	return 1;
}

/* Returns the event channel of a port, or one that isn't used for none. */
static struct xenpv_event *
xenpv_event_find(struct xenpv_device *xd, const uint32_t *port)
{
	struct xenpv_event *xe;
	unsigned int i;

	for (i = 0; i < xd->xd_count; i++) {
		xe = &xd->xd_events[i];
		if (port == NULL ? xe->xe_ih == NULL :
		    xe->xe_ih != NULL && xe->xe_port == *port)
			return xe;
	}
	return NULL;
}

int
xenpv_event_establish(void *device, uint32_t port)
{
	struct xenpv_device *xd = device;
	struct xenpv_event *xe = xenpv_event_find(xd, NULL);

	if (xe == NULL)
		return EBUSY;
	xe->xe_device = xd;
	xe->xe_port = port;
	xe->xe_ih = xenpv_intr_establish(port, xd->xd_ipl, xenpv_intr, xe,
	    true, device_xname(xd->xd_dev));
	return xe->xe_ih != NULL ? 0 : ENOMEM;
}

void
xenpv_event_disestablish(void *device, uint32_t port)
{
	struct xenpv_event *xe = xenpv_event_find(device, &port);

	KASSERT(xe != NULL);
	xenpv_intr_disestablish(xe->xe_ih, port, xenpv_intr, xe);
	xe->xe_ih = NULL;
}

void
xenpv_event_mask(uint32_t port)
{

	hypervisor_mask_event(port);
}

/*
 * Xenstore.
 */

int
xenpv_store_request(void *msg, void **reply)
{

	return xenbus_dev_request_and_reply(msg, reply);
}

void
xenpv_store_reply_free(void *msg, void *reply)
{

#if __NetBSD_Version__ >= 1000000000
	xenbus_dev_reply_free(msg, reply);
#else
	free(reply, M_DEVBUF);
#endif
}

/*
 * Watches are never freed, but used again: an event that the watch thread
 * has taken from its queue already may still be on its way to one that was
 * unset meanwhile. All that it can do then is to wake a thread in vain.
 */
#define XENPV_WATCHES	128

struct xenpv_watch {
	struct xenbus_watch	xw_watch;	/* first: the callback's */
	struct xenpv_device	*xw_device;	/* NULL: not used */
	unsigned int		xw_fired;
};

static struct xenpv_watch *xenpv_watches[XENPV_WATCHES];
static kmutex_t xenpv_watch_lock;		/* both of the above */
static ONCE_DECL(xenpv_watch_once);

static int
xenpv_watch_init(void)
{

	mutex_init(&xenpv_watch_lock, MUTEX_DEFAULT, IPL_NONE);
	return 0;
}

static void
xenpv_watch_callback(struct xenbus_watch *watch, const char **vec,
    unsigned int len)
{
	struct xenpv_watch *xw = (struct xenpv_watch *)watch;

	mutex_enter(&xenpv_watch_lock);
	if (xw->xw_device != NULL) {
		atomic_swap_uint(&xw->xw_fired, 1);
		xenpv_device_kick(xw->xw_device);
	}
	mutex_exit(&xenpv_watch_lock);
}

int
xenpv_watch_set(void *device, const char *path, uint32_t *id)
{
	struct xenpv_watch *xw;
	size_t len = strlen(path) + 1;
	unsigned int i;
	int error;

	RUN_ONCE(&xenpv_watch_once, xenpv_watch_init);
	mutex_enter(&xenpv_watch_lock);
	for (i = 0; i < XENPV_WATCHES; i++) {
		if (xenpv_watches[i] == NULL)
			xenpv_watches[i] = kmem_zalloc(sizeof(*xw), KM_SLEEP);
		if (xenpv_watches[i]->xw_device == NULL)
			break;
	}
	if (i == XENPV_WATCHES) {
		mutex_exit(&xenpv_watch_lock);
		return ENOSPC;
	}
	xw = xenpv_watches[i];
	xw->xw_device = device;
	atomic_swap_uint(&xw->xw_fired, 0);
	mutex_exit(&xenpv_watch_lock);

	xw->xw_watch.node = kmem_alloc(len, KM_SLEEP);
#if __NetBSD_Version__ >= 1000000000
	xw->xw_watch.node_sz = len;
#endif
	memcpy(xw->xw_watch.node, path, len);
	xw->xw_watch.xbw_callback = xenpv_watch_callback;
	error = register_xenbus_watch(&xw->xw_watch);
	if (error != 0 && error != EEXIST) {
		kmem_free(xw->xw_watch.node, len);
		mutex_enter(&xenpv_watch_lock);
		xw->xw_device = NULL;
		mutex_exit(&xenpv_watch_lock);
		return error;
	}
	*id = i;
	return 0;
}

void
xenpv_watch_unset(uint32_t id)
{
	struct xenpv_watch *xw = xenpv_watches[id];

	unregister_xenbus_watch(&xw->xw_watch);
	kmem_free(xw->xw_watch.node, strlen(xw->xw_watch.node) + 1);
	/* From here on the callback knows no device. */
	mutex_enter(&xenpv_watch_lock);
	xw->xw_device = NULL;
	mutex_exit(&xenpv_watch_lock);
}

bool
xenpv_watch_fired(uint32_t id)
{

	return atomic_swap_uint(&xenpv_watches[id]->xw_fired, 0) != 0;
}
