/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the glue of the Xen drivers shares.
 */

#ifndef _XENPV_VAR_H_
#define _XENPV_VAR_H_

#include <sys/param.h>
#include <sys/condvar.h>
#include <sys/device.h>
#include <sys/lwp.h>
#include <sys/mutex.h>

#include "xenpv.h"

struct intrhand;
struct sysctllog;

struct xenpv_device;

/* An event channel of a device, and its interrupt. */
struct xenpv_event {
	struct xenpv_device *xe_device;
	struct intrhand	*xe_ih;		/* NULL: not used */
	unsigned int	xe_port;
};

/*
 * A device: its thread, which may wait for xenstore, and its interrupts.
 * This is the "device" of the up-calls.
 */
struct xenpv_device {
	device_t	xd_dev;
	int		xd_ipl;		/* of the interrupts */
	void		(*xd_intr)(void *, unsigned int);
	/* Returns after how many ticks it wants to be called again, or 0. */
	int		(*xd_step)(void *);
	void		*xd_arg;	/* of both */

	kmutex_t	xd_lock;	/* IPL_VM; what follows */
	kcondvar_t	xd_cv;
	bool		xd_kicked;
	bool		xd_stop;
	struct lwp	*xd_lwp;

	/* The thread's alone, but for what an interrupt knows it by. */
	struct xenpv_event *xd_events;
	unsigned int	xd_count;
};

void	xenpv_device_init(struct xenpv_device *, device_t, int, unsigned int,
	    void (*)(void *, unsigned int), int (*)(void *), void *);
int	xenpv_device_start(struct xenpv_device *);
void	xenpv_device_kick(struct xenpv_device *);
void	xenpv_device_stop(struct xenpv_device *);
void	xenpv_device_destroy(struct xenpv_device *);

/*
 * Counters of a device, as read-only nodes hw.NAME.COUNTER of sysctl(7): each
 * 64 bits, found at its offset in what xc_fetch writes.
 */
struct xenpv_counter {
	const char	*xc_name;
	const char	*xc_about;
	size_t		xc_offset;
};

struct xenpv_counters {
	const struct xenpv_counter *xc_list;
	unsigned int	xc_count;
	void		(*xc_fetch)(void *, void *);
	void		*xc_arg;
	struct sysctllog *xc_log;
};

#define	XENPV_COUNTERS_MAX	128	/* bytes that xc_fetch may write */

void	xenpv_counters_attach(struct xenpv_counters *, device_t);
void	xenpv_counters_detach(struct xenpv_counters *);

void	xenpv_check_abi(void);
void	xenpv_pages_reap(void);

struct intrhand *
	xenpv_intr_establish(unsigned int, int, int (*)(void *), void *,
	    bool, const char *);
void	xenpv_intr_disestablish(struct intrhand *, unsigned int,
	    int (*)(void *), void *);

#endif /* _XENPV_VAR_H_ */
