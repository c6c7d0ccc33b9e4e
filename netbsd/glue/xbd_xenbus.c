/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * xbd(4): disks that another domain serves. The driver is in Rust (xenpv.h);
 * this is its life, in place of sys/arch/xen/xen/xbd_xenbus.c, and xbd_disk.c
 * is its disk(9) side.
 *
 * The device's thread goes through the states of the device, which waits for
 * xenstore. A disk that its back end wants to take away is closed when its last
 * user has closed it; xenbus detaches it when the back end is closed or gone.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/atomic.h>
#include <sys/bufq.h>
#include <sys/conf.h>
#include <sys/device.h>
#include <sys/disk.h>
#include <sys/disklabel.h>
#include <sys/errno.h>
#include <sys/kernel.h>
#include <sys/kthread.h>
#include <sys/vnode.h>

#include <dev/dkvar.h>

#include <xen/hypervisor.h>
#include <xen/xenbus.h>

#include "xbd_var.h"
#include "locators.h"

static int	xbd_match(device_t, cfdata_t, void *);
static void	xbd_attach(device_t, device_t, void *);
static int	xbd_detach(device_t, int);
static bool	xbd_suspend(device_t, const pmf_qual_t *);

static int	xbd_step(void *);
static void	xbd_fetch(void *, void *);

CFATTACH_DECL3_NEW(xbd, sizeof(struct xbd_softc),
    xbd_match, xbd_attach, xbd_detach, NULL, NULL, NULL, DVF_DETACH_SHUTDOWN);

static const struct xenpv_counter xbd_counters[] = {
#define	COUNTER(f, about) \
	{ #f, about, offsetof(struct xenpv_xbd_counters, f) }
	COUNTER(requests, "Requests sent to the back end"),
	COUNTER(indirect, "Indirect ones among them"),
	COUNTER(segments, "Data segments in them"),
	COUNTER(flushes, "Flushes among them"),
	COUNTER(barriers, "Barriers among them"),
	COUNTER(discards, "Discards among them"),
	COUNTER(notifications, "Events sent to the back end"),
	COUNTER(errors, "Transfers that failed"),
	COUNTER(still_mapped, "Answers with pages still mapped"),
	COUNTER(bounced, "Transfers of unaligned memory"),
	COUNTER(bounce_busy, "Times that the buffer for these was in use"),
	COUNTER(queue_full, "Times that a ring was full"),
	COUNTER(kept, "Transfers that a dead back end keeps"),
#undef COUNTER
};
CTASSERT(sizeof(struct xenpv_xbd_counters) <= XENPV_COUNTERS_MAX);

/* How long a boot waits for a back end that doesn't answer, in seconds. */
#define	XBD_PATIENCE	60
/* How long a forced detach waits for one that neither answers nor goes. */
#define	XBD_DETACH_PATIENCE	30
/* When to look again for what nothing tells of, in ticks. */
#define	XBD_SOON		MAX(hz / 10, 1)
/* How often a new size is told at most. */
static const struct timeval xbd_said_interval = { 1, 0 };

/*
 * Autoconfiguration.
 */

static int
xbd_match(device_t parent, cfdata_t cf, void *aux)
{
	const struct xenbusdev_attach_args *xa = aux;
	const int id = cf->cf_loc[XENBUSCF_ID];

	return strcmp(xa->xa_type, "vbd") == 0 &&
	    (id == XENBUSCF_ID_DEFAULT || id == xa->xa_id);
}

/* Whoever waits for all disks, to find the root's, need not for this one. */
static void
xbd_settled(struct xbd_softc *sc)
{
	bool pending;

	mutex_enter(&sc->sc_lock);
	pending = sc->sc_pending;
	sc->sc_pending = false;
	mutex_exit(&sc->sc_lock);
	if (pending)
		config_pending_decr(sc->sc_dksc.sc_dev);
}

static void
xbd_attach(device_t parent, device_t self, void *aux)
{
	struct xbd_softc *sc = device_private(self);
	struct xenbusdev_attach_args *xa = aux;
	struct xenpv_xbd_setup setup;
	void *qlocks[XENPV_XBD_QUEUES];
	unsigned int i;
	int error;

	aprint_naive(": Disk\n");
	aprint_normal(": Xen disk\n");

	sc->sc_xbusd = xa->xa_xbusd;
	dk_init(&sc->sc_dksc, self, DKTYPE_ESDI);
	disk_init(&sc->sc_dksc.sc_dkdev, device_xname(self), &xbd_dkdriver);
	mutex_init(&sc->sc_lock, MUTEX_DEFAULT, IPL_VM);
	sc->sc_queues = MIN(MAX(ncpu, 1), XENPV_XBD_QUEUES);
	for (i = 0; i < sc->sc_queues; i++) {
		mutex_init(&sc->sc_qlocks[i], MUTEX_DEFAULT, IPL_BIO);
		qlocks[i] = &sc->sc_qlocks[i];
	}
	cv_init(&sc->sc_cv, "xbd");
	xenpv_device_init(&sc->sc_xd, self, IPL_BIO, sc->sc_queues, xbd_intr,
	    xbd_step, sc);

	sc->sc_counters.xc_list = xbd_counters;
	sc->sc_counters.xc_count = __arraycount(xbd_counters);
	sc->sc_counters.xc_fetch = xbd_fetch;
	sc->sc_counters.xc_arg = sc;
	sc->sc_since = time_uptime;

	sc->sc_state = XBD_CONNECTING;
	sc->sc_pending = true;
	atomic_swap_uint(&sc->sc_ready, 1);
	config_pending_incr(self);

	memset(&setup, 0, sizeof(setup));
	setup.name = device_xname(self);
	setup.path = sc->sc_xbusd->xbusd_path;
	setup.device = &sc->sc_xd;
	setup.mutexes = qlocks;
	setup.queues = sc->sc_queues;
	setup.arg = sc;
	setup.done = xbd_done;
	setup.max_transfer = MAXPHYS;
	error = xenpv_xbd_create(&setup, &sc->sc_disk);
	if (error == 0)
		error = xenpv_device_start(&sc->sc_xd);
	if (error != 0) {
		aprint_error_dev(self, "can't be used, error %d\n", error);
		if (sc->sc_disk != NULL)
			xenpv_xbd_destroy(sc->sc_disk);
		sc->sc_disk = NULL;
		sc->sc_state = XBD_GONE;
		xbd_settled(sc);
	} else
		xenpv_device_kick(&sc->sc_xd);

	if (!pmf_device_register(self, xbd_suspend, NULL))
		aprint_error_dev(self, "no power handler\n");
}

/* The disk is taken away from under its users. */
static void
xbd_lost(struct xbd_softc *sc)
{

	aprint_error_dev(sc->sc_dksc.sc_dev,
	    "the back end is gone; transfers fail from now on\n");
}

/* Begins to close it; with force, waits until nothing of it is held. */
static void
xbd_end(struct xbd_softc *sc, bool force)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	bool open, lost;

	mutex_enter(&dk->dk_openlock);
	open = dk->dk_openmask != 0;
	mutex_exit(&dk->dk_openlock);
	mutex_enter(&sc->sc_lock);
	if (sc->sc_state == XBD_GONE) {
		mutex_exit(&sc->sc_lock);
		return;
	}
	lost = force && open && sc->sc_state == XBD_RUNNING;
	sc->sc_state = XBD_CLOSING;
	sc->sc_close = true;
	sc->sc_detaching = force;
	sc->sc_detach_since = time_uptime;
	mutex_exit(&sc->sc_lock);
	if (lost)
		xbd_lost(sc);
	xenpv_device_kick(&sc->sc_xd);

	mutex_enter(&sc->sc_lock);
	while (force && sc->sc_state != XBD_GONE)
		cv_wait(&sc->sc_cv, &sc->sc_lock);
	mutex_exit(&sc->sc_lock);
}

/* Takes it away from whoever has it open. */
static void
xbd_revoke(struct xbd_softc *sc)
{
	const int unit = device_unit(sc->sc_dksc.sc_dev);
	const int bmaj = bdevsw_lookup_major(&xbd_bdevsw);
	const int cmaj = cdevsw_lookup_major(&xbd_cdevsw);
	const int first = DISKMINOR(unit, 0);
	const int last = DISKMINOR(unit, MAXPARTITIONS - 1);

	/* What is queued, and whoever waits for it, ends before its users. */
	if (sc->sc_attached)
		dk_drain(&sc->sc_dksc);
	vdevgone(bmaj, first, last, VBLK);
	vdevgone(cmaj, first, last, VCHR);
}

/*
 * Called by xenbus, with DETACH_FORCE, when the back end is closed or gone;
 * else on somebody's wish. Then the front end begins to close, the back end
 * follows, and xenbus, which knows the device, comes.
 */
static int
xbd_detach(device_t self, int flags)
{
	struct xbd_softc *sc = device_private(self);
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	const bool force = (flags & DETACH_FORCE) != 0;
	unsigned int i;
	int error;

	error = disk_begindetach(dk, xbd_lastclose, self, flags);
	if (error != 0)
		return error;
	xbd_end(sc, force);
	if (!force)
		return EALREADY;
	xbd_revoke(sc);

	xenpv_device_stop(&sc->sc_xd);
	if (sc->sc_discover != NULL)
		kthread_join(sc->sc_discover);
	xenpv_counters_detach(&sc->sc_counters);
	if (sc->sc_attached) {
		dkwedge_delall(dk);
		dk_drain(&sc->sc_dksc);
		bufq_free(sc->sc_dksc.sc_bufq);
		disk_detach(dk);
		dk_detach(&sc->sc_dksc);
	}
	disk_destroy(dk);
	if (sc->sc_disk != NULL)
		xenpv_xbd_destroy(sc->sc_disk);
	xbd_settled(sc);
	xenpv_device_destroy(&sc->sc_xd);
	cv_destroy(&sc->sc_cv);
	for (i = 0; i < sc->sc_queues; i++)
		mutex_destroy(&sc->sc_qlocks[i]);
	mutex_destroy(&sc->sc_lock);
	pmf_device_deregister(self);
	return 0;
}

static bool
xbd_suspend(device_t self, const pmf_qual_t *qual)
{

	aprint_error_dev(self, "can't be suspended yet\n");
	return false;
}

/*
 * The device's thread.
 */

static void
xbd_gone(struct xbd_softc *sc)
{
	bool unexpected;

	mutex_enter(&sc->sc_lock);
	unexpected = sc->sc_state == XBD_RUNNING;
	sc->sc_state = XBD_GONE;
	cv_broadcast(&sc->sc_cv);
	mutex_exit(&sc->sc_lock);
	if (unexpected)
		xbd_lost(sc);
	/* Those that wait in the queue are let fail. */
	if (sc->sc_attached)
		dk_start(&sc->sc_dksc, NULL);
	xbd_settled(sc);
}

/*
 * The back end wants to go. Returns whether the disk is to be closed now.
 * Called with dk_openlock: whoever opens the disk after this look sees the
 * change.
 */
static bool
xbd_close_wanted(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	bool busy, close;

	busy = dk->dk_openmask != 0;
	mutex_enter(&sc->sc_lock);
	if (!busy && sc->sc_state == XBD_RUNNING) {
		sc->sc_state = XBD_CLOSING;
		sc->sc_close = true;
	}
	close = sc->sc_close;
	mutex_exit(&sc->sc_lock);
	if (busy && !sc->sc_warned) {
		sc->sc_warned = true;
		aprint_error_dev(sc->sc_dksc.sc_dev, "the back end wants to be "
		    "closed, but the disk is in use\n");
	}
	return close;
}

/*
 * Nothing has happened. Returns when to look again, in ticks, though nothing
 * may tell of it.
 *
 * Whoever waits in xbd_detach() is the thread that tells of watches: until it
 * goes on, what the back end does next has to be looked for.
 *
 * The system is let start without a disk whose back end doesn't answer. It is
 * still waited for.
 */
static int
xbd_patience(struct xbd_softc *sc)
{
	bool detaching, pending, attached;
	time_t since;

	mutex_enter(&sc->sc_lock);
	detaching = sc->sc_detaching;
	since = sc->sc_detach_since;
	pending = sc->sc_pending;
	attached = sc->sc_attached;
	mutex_exit(&sc->sc_lock);
	if (detaching) {
		if (time_uptime - since >= XBD_DETACH_PATIENCE) {
			aprint_error_dev(sc->sc_dksc.sc_dev, "the back end "
			    "neither answers nor goes; given up\n");
			xenpv_xbd_abandon(sc->sc_disk);
		}
		return XBD_SOON;
	}
	if (!pending)
		return 0;
	/* A detach may be waiting for this one to settle, and tells nothing. */
	if (attached || time_uptime - sc->sc_since < XBD_PATIENCE)
		return hz;
	aprint_error_dev(sc->sc_dksc.sc_dev,
	    "the back end doesn't answer; not waited for any longer\n");
	xbd_settled(sc);
	return 0;
}

/* Looks for wedges. This reads, so the device's thread must not wait for it. */
static void
xbd_discover(void *arg)
{
	struct xbd_softc *sc = arg;
	bool again;

	do {
		dkwedge_discover(&sc->sc_dksc.sc_dkdev);
		xbd_settled(sc);
		mutex_enter(&sc->sc_lock);
		again = sc->sc_discovering = sc->sc_rediscover;
		sc->sc_rediscover = false;
		mutex_exit(&sc->sc_lock);
	} while (again);
	kthread_exit(0);
}

/* Has wedges looked for: new ones, and those that have grown. */
static void
xbd_rediscover(struct xbd_softc *sc)
{
	device_t self = sc->sc_dksc.sc_dev;
	bool running;

	mutex_enter(&sc->sc_lock);
	running = sc->sc_rediscover = sc->sc_discovering;
	sc->sc_discovering = true;
	mutex_exit(&sc->sc_lock);
	if (running)
		return;
	/* An earlier one has nothing left to do but to end. */
	if (sc->sc_discover != NULL)
		kthread_join(sc->sc_discover);
	if (kthread_create(PRI_NONE, KTHREAD_MPSAFE | KTHREAD_MUSTJOIN, NULL,
	    xbd_discover, sc, &sc->sc_discover, "%swedge",
	    device_xname(self)) != 0) {
		aprint_error_dev(self, "no thread to look for wedges\n");
		sc->sc_discover = NULL;
		mutex_enter(&sc->sc_lock);
		sc->sc_discovering = false;
		mutex_exit(&sc->sc_lock);
		xbd_settled(sc);
	}
}

/* Tells an operator what the disk is, and what it was, if it was another. */
static void
xbd_tell(struct xbd_softc *sc)
{
	const struct xenpv_xbd_info *info = &sc->sc_info;
	char size[9], was[24] = "", queues[16] = "";

	if (sc->sc_told.queues != 0) {
		format_bytes(size, sizeof(size),
		    sc->sc_told.sectors * DEV_BSIZE);
		snprintf(was, sizeof(was), "was %s, now ", size);
	}
	if (info->queues > 1)
		snprintf(queues, sizeof(queues), ", %u queues", info->queues);
	format_bytes(size, sizeof(size), info->sectors * DEV_BSIZE);
	aprint_normal_dev(sc->sc_dksc.sc_dev,
	    "%s%s, %u bytes/sect x %" PRIu64 " sectors%s%s%s%s\n", was, size,
	    info->sector_size,
	    info->sectors / (info->sector_size / DEV_BSIZE),
	    (info->flags & XENPV_XBD_READONLY) != 0 ? ", read-only" : "",
	    (info->flags & XENPV_XBD_CDROM) != 0 ? ", CD-ROM" : "",
	    (info->flags & XENPV_XBD_REMOVABLE) != 0 ? ", removable" : "",
	    queues);
	sc->sc_told = *info;
}

/*
 * Tells the kernel how large the disk is. Others look at the geometry without
 * a lock, once it is there. The size of a sector never changes.
 */
static void
xbd_set_geometry(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	struct disk_geom *dg = &dk->dk_geom;

	dg->dg_secperunit = sc->sc_info.sectors /
	    (sc->sc_info.sector_size / DEV_BSIZE);
	dg->dg_ncylinders = dg->dg_secperunit / dg->dg_nsectors;
	disk_set_info(sc->sc_dksc.sc_dev, dk, NULL);
}

static void
xbd_connected(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	struct disk_geom *dg = &dk->dk_geom;

	memset(dg, 0, sizeof(*dg));
	dg->dg_secsize = sc->sc_info.sector_size;
	dg->dg_ntracks = 1;
	dg->dg_nsectors = 1024 * 1024 / dg->dg_secsize;

	/* The back end has the order that suits its disk. */
	bufq_alloc(&sc->sc_dksc.sc_bufq, "fcfs", 0);
	dk_attach(&sc->sc_dksc);
	disk_attach(dk);
	xbd_set_geometry(sc);
	xenpv_counters_attach(&sc->sc_counters, sc->sc_dksc.sc_dev);
	mutex_enter(&sc->sc_lock);
	sc->sc_attached = true;
	if (sc->sc_state == XBD_CONNECTING)
		sc->sc_state = XBD_RUNNING;
	mutex_exit(&sc->sc_lock);
	xbd_tell(sc);
	xbd_rediscover(sc);
}

/*
 * The back end has changed the disk. Returns whether all know, or it has to be
 * tried again: whoever opens the disk may hold the lock for as long as the
 * back end doesn't answer, which this thread must not wait for; and a back end
 * may say new sizes as often as it likes.
 */
static bool
xbd_changed(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;

	/* disk_ioctl() looks at what disk_set_info() replaces. */
	if (!mutex_tryenter(&dk->dk_openlock))
		return false;
	xbd_set_geometry(sc);
	mutex_exit(&dk->dk_openlock);
	if (!ratecheck(&sc->sc_said, &xbd_said_interval))
		return false;
	if (sc->sc_told.sectors != sc->sc_info.sectors ||
	    sc->sc_told.flags != sc->sc_info.flags)
		xbd_tell(sc);
	xbd_rediscover(sc);
	return true;
}

/* Goes on as far as possible. Returns when to look again, in ticks, or 0. */
static int
xbd_go_on(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	struct xenpv_xbd_info info;
	bool close;
	int happened;

	for (;;) {
		mutex_enter(&sc->sc_lock);
		close = sc->sc_close;
		sc->sc_close = false;
		mutex_exit(&sc->sc_lock);
		if (close)
			xenpv_xbd_close(sc->sc_disk);

		happened = xenpv_xbd_step(sc->sc_disk, &info);
		switch (happened) {
		case XENPV_XBD_CONNECTED:
		case XENPV_XBD_RESIZED:
			mutex_enter(&sc->sc_lock);
			sc->sc_info = info;
			mutex_exit(&sc->sc_lock);
			if (happened == XENPV_XBD_CONNECTED)
				xbd_connected(sc);
			else
				sc->sc_changed = true;
			break;
		case XENPV_XBD_CLOSE_WANTED:
			/* As in xbd_changed(). */
			if (!mutex_tryenter(&dk->dk_openlock))
				return XBD_SOON;
			close = xbd_close_wanted(sc);
			mutex_exit(&dk->dk_openlock);
			if (!close)
				return xbd_patience(sc);
			break;
		case XENPV_XBD_CLOSED:
			xbd_gone(sc);
			return 0;
		case XENPV_XBD_FAILED:
			mutex_enter(&sc->sc_lock);
			if (sc->sc_state != XBD_GONE)
				sc->sc_state = XBD_CLOSING;
			mutex_exit(&sc->sc_lock);
			/* Nothing of it comes to be the root. */
			xbd_settled(sc);
			return XBD_SOON;
		case XENPV_XBD_AGAIN:
			return XBD_SOON;
		default:
			return xbd_patience(sc);
		}
	}
}

static int
xbd_step(void *arg)
{
	struct xbd_softc *sc = arg;
	int ticks = xbd_go_on(sc);

	if (sc->sc_changed)
		sc->sc_changed = !xbd_changed(sc);
	return sc->sc_changed ? XBD_SOON : ticks;
}

static void
xbd_fetch(void *arg, void *to)
{
	struct xbd_softc *sc = arg;

	xenpv_xbd_counters(sc->sc_disk, to);
}
