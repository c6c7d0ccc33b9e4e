/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * xbd(4): disks that another domain serves. The driver is in Rust (xenpv.h);
 * this is its disk(9) side, in place of sys/arch/xen/xen/xbd_xenbus.c.
 *
 * The device's thread goes through the states of the device, which waits for
 * xenstore. Transfers are started from dk_start() and end in the interrupt.
 * A disk that its back end wants to take away is closed when its last user
 * has closed it; xenbus detaches it when the back end is closed or gone.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/atomic.h>
#include <sys/buf.h>
#include <sys/bufq.h>
#include <sys/conf.h>
#include <sys/device.h>
#include <sys/disk.h>
#include <sys/disklabel.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <sys/ioccom.h>
#include <sys/kernel.h>
#include <sys/kthread.h>
#include <sys/proc.h>
#include <sys/stat.h>
#include <sys/vnode.h>

#include <dev/dkvar.h>

#include <xen/hypervisor.h>
#include <xen/xenbus.h>

#include "xenpv_var.h"
#include "locators.h"

struct xbd_softc {
	struct dk_softc		sc_dksc;	/* first: dk(9)'s */
	struct xenbus_device	*sc_xbusd;
	struct xenpv_device	sc_xd;
	struct xenpv_xbd	*sc_disk;
	kmutex_t		sc_qlock;	/* the library's */
	struct xenpv_xbd_info	sc_info;	/* once connected */
	struct lwp		*sc_discover;
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
	bool			sc_warned;
	struct timeval		sc_said;	/* when a size was printed */
};

static const struct timeval xbd_said_interval = { 1, 0 };

/* A cache flush that somebody waits for. As a token it has its low bit set. */
struct xbd_sync {
	bool	s_done;
	int	s_error;
};
#define	XBD_SYNC_TOKEN(s)	((void *)((uintptr_t)(s) | 1))
#define	XBD_IS_SYNC(t)		(((uintptr_t)(t) & 1) != 0)
#define	XBD_SYNC(t)		((struct xbd_sync *)((uintptr_t)(t) & ~1UL))

static int	xbd_match(device_t, cfdata_t, void *);
static void	xbd_attach(device_t, device_t, void *);
static int	xbd_detach(device_t, int);
static bool	xbd_suspend(device_t, const pmf_qual_t *);

static void	xbd_intr(void *);
static int	xbd_step(void *);
static void	xbd_done(void *, void *, int);
static void	xbd_connected(struct xbd_softc *);
static void	xbd_fetch(void *, void *);

static int	xbd_diskstart(device_t, struct buf *);
static int	xbd_dumpblocks(device_t, void *, daddr_t, int);
static int	xbd_lastclose(device_t);

CFATTACH_DECL3_NEW(xbd, sizeof(struct xbd_softc),
    xbd_match, xbd_attach, xbd_detach, NULL, NULL, NULL, DVF_DETACH_SHUTDOWN);

extern struct cfdriver xbd_cd;

static dev_type_open(xbdopen);
static dev_type_close(xbdclose);
static dev_type_read(xbdread);
static dev_type_write(xbdwrite);
static dev_type_ioctl(xbdioctl);
static dev_type_strategy(xbdstrategy);
static dev_type_dump(xbddump);
static dev_type_size(xbdsize);

const struct bdevsw xbd_bdevsw = {
	.d_open = xbdopen,
	.d_close = xbdclose,
	.d_strategy = xbdstrategy,
	.d_ioctl = xbdioctl,
	.d_dump = xbddump,
	.d_psize = xbdsize,
	.d_discard = nodiscard,
	.d_flag = D_DISK | D_MPSAFE
};

const struct cdevsw xbd_cdevsw = {
	.d_open = xbdopen,
	.d_close = xbdclose,
	.d_read = xbdread,
	.d_write = xbdwrite,
	.d_ioctl = xbdioctl,
	.d_stop = nostop,
	.d_tty = notty,
	.d_poll = nopoll,
	.d_mmap = nommap,
	.d_kqfilter = nokqfilter,
	.d_discard = nodiscard,
	.d_flag = D_DISK | D_MPSAFE
};

static const struct dkdriver xbd_dkdriver = {
	.d_strategy = xbdstrategy,
	.d_minphys = minphys,
	.d_open = xbdopen,
	.d_close = xbdclose,
	.d_diskstart = xbd_diskstart,
	.d_dumpblocks = xbd_dumpblocks,
	.d_lastclose = xbd_lastclose,
};

static const struct xenpv_counter xbd_counters[] = {
#define	COUNTER(f, about) \
	{ #f, about, offsetof(struct xenpv_xbd_counters, f) }
	COUNTER(requests, "Requests sent to the back end"),
	COUNTER(segments, "Data segments in them"),
	COUNTER(notifications, "Events sent to the back end"),
	COUNTER(errors, "Requests that failed"),
	COUNTER(still_mapped, "Answers with pages still mapped"),
	COUNTER(bounced, "Transfers of unaligned memory"),
	COUNTER(bounce_busy, "Times that the buffer for these was in use"),
	COUNTER(queue_full, "Times that the ring was full"),
	COUNTER(kept, "Transfers that a dead back end keeps"),
#undef COUNTER
};
CTASSERT(sizeof(struct xenpv_xbd_counters) <= XENPV_COUNTERS_MAX);

/* How long a boot waits for a back end that doesn't answer, in seconds. */
#define	XBD_PATIENCE	60
/* How long a forced detach waits for one that neither answers nor goes. */
#define	XBD_DETACH_PATIENCE	30

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

/*
 * Returns the disk of a device number, for whoever hasn't opened it: a device
 * is found by its number before its attach function has made its locks.
 */
static struct xbd_softc *
xbd_find(dev_t dev)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));

	if (sc == NULL || atomic_cas_uint(&sc->sc_ready, 1, 1) != 1)
		return NULL;
	return sc;
}

/*
 * Tells whether the disk takes transfers, and what it is. The thread changes
 * both at any time.
 */
static bool
xbd_running(struct xbd_softc *sc, struct xenpv_xbd_info *info)
{
	bool running;

	mutex_enter(&sc->sc_lock);
	running = sc->sc_state == XBD_RUNNING;
	*info = sc->sc_info;
	mutex_exit(&sc->sc_lock);
	return running;
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
	int error;

	aprint_naive(": Disk\n");
	aprint_normal(": Xen disk\n");

	sc->sc_xbusd = xa->xa_xbusd;
	dk_init(&sc->sc_dksc, self, DKTYPE_ESDI);
	disk_init(&sc->sc_dksc.sc_dkdev, device_xname(self), &xbd_dkdriver);
	mutex_init(&sc->sc_lock, MUTEX_DEFAULT, IPL_VM);
	mutex_init(&sc->sc_qlock, MUTEX_DEFAULT, IPL_BIO);
	cv_init(&sc->sc_cv, "xbd");
	xenpv_device_init(&sc->sc_xd, self, IPL_BIO, xbd_intr, xbd_step, sc);

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
	setup.mutex = &sc->sc_qlock;
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
	mutex_destroy(&sc->sc_qlock);
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

/* The back end wants to go. Returns whether the disk is to be closed now. */
static bool
xbd_close_wanted(struct xbd_softc *sc)
{
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	bool busy, close;

	/* Whoever opens it after this look sees the change. */
	mutex_enter(&dk->dk_openlock);
	busy = dk->dk_openmask != 0;
	mutex_enter(&sc->sc_lock);
	if (!busy && sc->sc_state == XBD_RUNNING) {
		sc->sc_state = XBD_CLOSING;
		sc->sc_close = true;
	}
	close = sc->sc_close;
	mutex_exit(&sc->sc_lock);
	mutex_exit(&dk->dk_openlock);
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
		return MAX(hz / 10, 1);
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

static int
xbd_step(void *arg)
{
	struct xbd_softc *sc = arg;
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
			xbd_connected(sc);
			break;
		case XENPV_XBD_CLOSE_WANTED:
			if (!xbd_close_wanted(sc))
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
			return MAX(hz / 10, 1);
		case XENPV_XBD_AGAIN:
			return MAX(hz / 10, 1);
		default:
			return xbd_patience(sc);
		}
	}
}

/* Finds wedges: this reads, so the device's thread must not wait for it. */
static void
xbd_discover(void *arg)
{
	struct xbd_softc *sc = arg;

	dkwedge_discover(&sc->sc_dksc.sc_dkdev);
	xbd_settled(sc);
	kthread_exit(0);
}

static void
xbd_connected(struct xbd_softc *sc)
{
	device_t self = sc->sc_dksc.sc_dev;
	struct disk *dk = &sc->sc_dksc.sc_dkdev;
	struct disk_geom *dg = &dk->dk_geom;
	bool first = !sc->sc_attached;
	char size[9];

	/*
	 * Others look at the geometry without a lock, once it is there. The
	 * size of a sector never changes.
	 */
	if (first) {
		memset(dg, 0, sizeof(*dg));
		dg->dg_secsize = sc->sc_info.sector_size;
		dg->dg_ntracks = 1;
		dg->dg_nsectors = 1024 * 1024 / dg->dg_secsize;
	}
	dg->dg_secperunit = sc->sc_info.sectors /
	    (sc->sc_info.sector_size / DEV_BSIZE);
	dg->dg_ncylinders = dg->dg_secperunit / dg->dg_nsectors;

	if (first) {
		/* The back end has the order that suits its disk. */
		bufq_alloc(&sc->sc_dksc.sc_bufq, "fcfs", 0);
		dk_attach(&sc->sc_dksc);
		disk_attach(dk);
		xenpv_counters_attach(&sc->sc_counters, self);
	}
	disk_set_info(self, dk, NULL);
	mutex_enter(&sc->sc_lock);
	sc->sc_attached = true;
	if (sc->sc_state == XBD_CONNECTING)
		sc->sc_state = XBD_RUNNING;
	mutex_exit(&sc->sc_lock);

	/* A back end may say new sizes as often as it likes. */
	if (!first && !ratecheck(&sc->sc_said, &xbd_said_interval))
		return;
	format_bytes(size, sizeof(size), sc->sc_info.sectors * DEV_BSIZE);
	aprint_normal_dev(self, "%s%s, %u bytes/sect x %" PRIu64 " sectors%s\n",
	    first ? "" : "now ", size, sc->sc_info.sector_size,
	    (uint64_t)dg->dg_secperunit,
	    (sc->sc_info.flags & XENPV_XBD_READONLY) != 0 ? ", read-only" : "");

	if (first && kthread_create(PRI_NONE, KTHREAD_MPSAFE |
	    KTHREAD_MUSTJOIN, NULL, xbd_discover, sc, &sc->sc_discover,
	    "%swedge", device_xname(self)) != 0) {
		aprint_error_dev(self, "no thread to look for wedges\n");
		sc->sc_discover = NULL;
		xbd_settled(sc);
	}
}

/*
 * Transfers.
 */

static void
xbd_intr(void *arg)
{
	struct xbd_softc *sc = arg;
	bool attached;

	if (xenpv_xbd_intr(sc->sc_disk))
		xenpv_device_kick(&sc->sc_xd);
	/* The back end may send events from the first moment of the ring. */
	mutex_enter(&sc->sc_lock);
	attached = sc->sc_attached;
	mutex_exit(&sc->sc_lock);
	/* There may be room in the ring now. */
	if (attached)
		dk_start(&sc->sc_dksc, NULL);
}

static void
xbd_done(void *arg, void *token, int error)
{
	struct xbd_softc *sc = arg;
	struct buf *bp;

	if (XBD_IS_SYNC(token)) {
		mutex_enter(&sc->sc_lock);
		XBD_SYNC(token)->s_error = error;
		XBD_SYNC(token)->s_done = true;
		cv_broadcast(&sc->sc_cv);
		mutex_exit(&sc->sc_lock);
		return;
	}
	bp = token;
	bp->b_error = error;
	bp->b_resid = error != 0 ? bp->b_bcount : 0;
	dk_done(&sc->sc_dksc, bp);
}

static int
xbd_diskstart(device_t self, struct buf *bp)
{
	struct xbd_softc *sc = device_private(self);
	struct xenpv_xbd_info info;

	if (!xbd_running(sc, &info))
		return EIO;
	return xenpv_xbd_start(sc->sc_disk,
	    (bp->b_flags & B_READ) != 0 ? XENPV_XBD_READ : XENPV_XBD_WRITE,
	    (uint64_t)bp->b_rawblkno * (info.sector_size / DEV_BSIZE),
	    bp->b_data, bp->b_bcount, bp);
}

static int
xbd_sync(struct xbd_softc *sc)
{
	struct xbd_sync s = { false, 0 };
	struct xenpv_xbd_info info;
	int error;

	for (;;) {
		if (!xbd_running(sc, &info))
			return EIO;
		error = xenpv_xbd_start(sc->sc_disk, XENPV_XBD_SYNC, 0, NULL,
		    0, XBD_SYNC_TOKEN(&s));
		if (error != EAGAIN)
			break;
		kpause("xbdsync", false, 1, NULL);
	}
	if (error != 0)
		return error;
	mutex_enter(&sc->sc_lock);
	while (!s.s_done)
		cv_wait(&sc->sc_cv, &sc->sc_lock);
	mutex_exit(&sc->sc_lock);
	return s.s_error;
}

static int
xbd_dumpblocks(device_t self, void *va, daddr_t blkno, int nblk)
{
	struct xbd_softc *sc = device_private(self);
	const unsigned int secsize = sc->sc_info.sector_size;
	int error;

	error = xenpv_xbd_dump(sc->sc_disk,
	    (uint64_t)blkno * (secsize / DEV_BSIZE), va,
	    (size_t)nblk * secsize);
	if (error != 0)
		aprint_error_dev(self, "dump at block %" PRId64 ": error %d\n",
		    (int64_t)blkno, error);
	return error;
}

static void
xbd_fetch(void *arg, void *to)
{
	struct xbd_softc *sc = arg;

	xenpv_xbd_counters(sc->sc_disk, to);
}

/*
 * Device switch.
 */

static int
xbd_lastclose(device_t self)
{
	struct xbd_softc *sc = device_private(self);

	/* The back end may have been waiting for this. */
	xenpv_device_kick(&sc->sc_xd);
	return 0;
}

static int
xbdopen(dev_t dev, int flags, int fmt, struct lwp *l)
{
	struct xbd_softc *sc = xbd_find(dev);
	struct xenpv_xbd_info info;
	int error;

	if (sc == NULL || !xbd_running(sc, &info))
		return ENXIO;
	if ((flags & FWRITE) != 0 && (info.flags & XENPV_XBD_READONLY) != 0)
		return EROFS;
	error = dk_open(&sc->sc_dksc, dev, flags, fmt, l);
	/* It may have been found unused, and closed, just before. */
	if (error == 0 && !xbd_running(sc, &info)) {
		dk_close(&sc->sc_dksc, dev, flags, fmt, l);
		error = ENXIO;
	}
	return error;
}

static int
xbdclose(dev_t dev, int flags, int fmt, struct lwp *l)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));

	if (sc == NULL)
		return ENXIO;
	return dk_close(&sc->sc_dksc, dev, flags, fmt, l);
}

static void
xbdstrategy(struct buf *bp)
{
	struct xbd_softc *sc =
	    device_lookup_private(&xbd_cd, DISKUNIT(bp->b_dev));
	struct xenpv_xbd_info info;
	int error = 0;

	if (sc == NULL || !xbd_running(sc, &info))
		error = EIO;
	else if ((bp->b_flags & B_READ) == 0 &&
	    (info.flags & XENPV_XBD_READONLY) != 0)
		error = EROFS;
	if (error != 0) {
		bp->b_error = error;
		bp->b_resid = bp->b_bcount;
		biodone(bp);
		return;
	}
	dk_strategy(&sc->sc_dksc, bp);
}

static int
xbdread(dev_t dev, struct uio *uio, int flags)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));
	struct xenpv_xbd_info info;

	if (sc == NULL || !xbd_running(sc, &info))
		return ENXIO;
	return physio(xbdstrategy, NULL, dev, B_READ, minphys, uio);
}

static int
xbdwrite(dev_t dev, struct uio *uio, int flags)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));
	struct xenpv_xbd_info info;

	if (sc == NULL || !xbd_running(sc, &info))
		return ENXIO;
	if ((info.flags & XENPV_XBD_READONLY) != 0)
		return EROFS;
	return physio(xbdstrategy, NULL, dev, B_WRITE, minphys, uio);
}

static int
xbdioctl(dev_t dev, u_long cmd, void *data, int flag, struct lwp *l)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));
	struct xenpv_xbd_info info;

	if (sc == NULL)
		return ENXIO;
	(void)xbd_running(sc, &info);
	switch (cmd) {
	case DIOCGCACHE:
		/* A cache that can be flushed is taken for a write cache. */
		*(int *)data = (info.flags & XENPV_XBD_FLUSH) != 0 ?
		    DKCACHE_WRITE : 0;
		return 0;
	case DIOCCACHESYNC:
		if ((info.flags & XENPV_XBD_FLUSH) == 0)
			return EOPNOTSUPP;
		return xbd_sync(sc);
	default:
		return dk_ioctl(&sc->sc_dksc, dev, cmd, data, flag, l);
	}
}

static int
xbdsize(dev_t dev)
{
	struct xbd_softc *sc = xbd_find(dev);
	struct xenpv_xbd_info info;

	if (sc == NULL || !xbd_running(sc, &info))
		return -1;
	return dk_size(&sc->sc_dksc, dev);
}

static int
xbddump(dev_t dev, daddr_t blkno, void *va, size_t size)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));

	if (sc == NULL || sc->sc_state != XBD_RUNNING)
		return ENXIO;
#if __NetBSD_Version__ >= 1000000000
	return dk_dump(&sc->sc_dksc, dev, blkno, va, size, 0);
#else
	return dk_dump(&sc->sc_dksc, dev, blkno, va, size);
#endif
}
