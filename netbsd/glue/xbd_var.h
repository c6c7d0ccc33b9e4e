/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the two halves of xbd(4) share: its life, and its disk.
 */

#ifndef _XBD_VAR_H_
#define _XBD_VAR_H_

#include <sys/param.h>
#include <sys/conf.h>
#include <sys/device.h>
#include <sys/disk.h>
#include <sys/mutex.h>
#include <sys/time.h>

#include <dev/dkvar.h>

#include "opt_xenpv_rust.h"

#include "xenpv_var.h"

/*
 * A disk has a queue for each CPU, but not more than this, nor than its back
 * end offers.
 */
#ifndef XENPV_XBD_QUEUES
#define	XENPV_XBD_QUEUES	4
#endif
CTASSERT(XENPV_XBD_QUEUES >= 1 && XENPV_XBD_QUEUES <= XENPV_XBD_MAX_QUEUES);

struct xenbus_device;

#include "locators.h"

struct xbd_softc {
	struct dk_softc		sc_dksc;	/* first: dk(9)'s */
	struct xenbus_device	*sc_xbusd;
	struct xenpv_device	sc_xd;
	struct xenpv_xbd	*sc_disk;
	kmutex_t		sc_qlocks[XENPV_XBD_QUEUES]; /* the library's */
	unsigned int		sc_queues;	/* for how many there are places */
	struct xenpv_xbd_info	sc_info;	/* once connected */
	struct xenpv_counters	sc_counters;
	time_t			sc_since;	/* when it was attached */
	volatile unsigned int	sc_ready;	/* its locks are there */

	kmutex_t		sc_lock;	/* IPL_VM; what follows */
	kcondvar_t		sc_cv;
	enum {
		XBD_CONNECTING,
		XBD_RUNNING,
		XBD_CLOSING,	/* no new users, no new transfers */
		XBD_GONE,	/* nothing is in flight, nothing held */
	}			sc_state;
	bool			sc_pending;	/* config_pending_decr() is due */
	bool			sc_attached;	/* dk_attach() was called */
	bool			sc_close;	/* the thread is to close it */
	bool			sc_detaching;	/* xbd_detach() waits */
	time_t			sc_detach_since;
	bool			sc_discovering;	/* sc_discover is at work */
	bool			sc_rediscover;	/* and has to begin anew */

	/* The device's thread's alone. */
	struct lwp		*sc_discover;	/* looks for wedges */
	bool			sc_warned;
	bool			sc_changed;	/* the disk, and it was not told */
	struct xenpv_xbd_info	sc_told;	/* what was printed of it */
	struct timeval		sc_said;	/* when */
};

extern const struct bdevsw xbd_bdevsw;
extern const struct cdevsw xbd_cdevsw;
extern const struct dkdriver xbd_dkdriver;

bool	xbd_running(struct xbd_softc *, struct xenpv_xbd_info *);
void	xbd_intr(void *, unsigned int);
void	xbd_done(void *, void *, int);
int	xbd_lastclose(device_t);

#endif /* _XBD_VAR_H_ */
