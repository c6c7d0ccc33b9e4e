/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * xbd(4): its disk(9) side. Transfers are started from dk_start() and end in
 * the interrupt.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/atomic.h>
#include <sys/buf.h>
#include <sys/conf.h>
#include <sys/cpu.h>
#include <sys/device.h>
#include <sys/disk.h>
#include <sys/disklabel.h>
#include <sys/errno.h>
#include <sys/fcntl.h>
#include <sys/ioccom.h>
#include <sys/kernel.h>
#include <sys/proc.h>
#include <sys/stat.h>

#include <dev/dkvar.h>

#include "xbd_var.h"

/*
 * A flush or discard, which has no buf, and for which somebody waits. As a
 * token it has its low bit set.
 */
struct xbd_wait {
	bool	w_done;
	int	w_error;
};
#define	XBD_WAIT_TOKEN(w)	((void *)((uintptr_t)(w) | 1))
#define	XBD_IS_WAIT(t)		(((uintptr_t)(t) & 1) != 0)
#define	XBD_WAIT(t)		((struct xbd_wait *)((uintptr_t)(t) & ~1UL))

/* What bounds checks are given at once, as a buf's length is an int. */
#define	XBD_CHECK_MAX		(1024 * 1024 * 1024)

static int	xbd_diskstart(device_t, struct buf *);
static int	xbd_dumpblocks(device_t, void *, daddr_t, int);

extern struct cfdriver xbd_cd;

static dev_type_open(xbdopen);
static dev_type_close(xbdclose);
static dev_type_read(xbdread);
static dev_type_write(xbdwrite);
static dev_type_ioctl(xbdioctl);
static dev_type_strategy(xbdstrategy);
static dev_type_dump(xbddump);
static dev_type_size(xbdsize);
static dev_type_discard(xbddiscard);

const struct bdevsw xbd_bdevsw = {
	.d_open = xbdopen,
	.d_close = xbdclose,
	.d_strategy = xbdstrategy,
	.d_ioctl = xbdioctl,
	.d_dump = xbddump,
	.d_psize = xbdsize,
	.d_discard = xbddiscard,
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
	.d_discard = xbddiscard,
	.d_flag = D_DISK | D_MPSAFE
};

const struct dkdriver xbd_dkdriver = {
	.d_strategy = xbdstrategy,
	.d_minphys = minphys,
	.d_open = xbdopen,
	.d_close = xbdclose,
	.d_diskstart = xbd_diskstart,
	.d_dumpblocks = xbd_dumpblocks,
	.d_lastclose = xbd_lastclose,
};

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
bool
xbd_running(struct xbd_softc *sc, struct xenpv_xbd_info *info)
{
	bool running;

	mutex_enter(&sc->sc_lock);
	running = sc->sc_state == XBD_RUNNING;
	*info = sc->sc_info;
	mutex_exit(&sc->sc_lock);
	return running;
}

/*
 * Transfers.
 */

void
xbd_intr(void *arg, unsigned int port)
{
	struct xbd_softc *sc = arg;
	bool attached;

	if (xenpv_xbd_intr(sc->sc_disk, port))
		xenpv_device_kick(&sc->sc_xd);
	/* The back end may send events from the first moment of the ring. */
	mutex_enter(&sc->sc_lock);
	attached = sc->sc_attached;
	mutex_exit(&sc->sc_lock);
	/* There may be room in the ring now. */
	if (attached)
		dk_start(&sc->sc_dksc, NULL);
}

void
xbd_done(void *arg, void *token, int error)
{
	struct xbd_softc *sc = arg;
	struct buf *bp;

	if (XBD_IS_WAIT(token)) {
		mutex_enter(&sc->sc_lock);
		XBD_WAIT(token)->w_error = error;
		XBD_WAIT(token)->w_done = true;
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
	return xenpv_xbd_start(sc->sc_disk, cpu_index(curcpu()),
	    (bp->b_flags & B_READ) != 0 ? XENPV_XBD_READ : XENPV_XBD_WRITE,
	    (uint64_t)bp->b_rawblkno * (info.sector_size / DEV_BSIZE),
	    bp->b_data, bp->b_bcount, bp);
}

/* Does what has no buf, and waits for its end. */
static int
xbd_do(struct xbd_softc *sc, int op, uint64_t sector, size_t len)
{
	struct xbd_wait w = { false, 0 };
	struct xenpv_xbd_info info;
	int error;

	for (;;) {
		if (!xbd_running(sc, &info))
			return EIO;
		error = xenpv_xbd_start(sc->sc_disk, cpu_index(curcpu()), op,
		    sector, NULL, len, XBD_WAIT_TOKEN(&w));
		if (error != EAGAIN)
			break;
		kpause("xbdwait", false, 1, NULL);
	}
	if (error != 0)
		return error;
	mutex_enter(&sc->sc_lock);
	while (!w.w_done)
		cv_wait(&sc->sc_cv, &sc->sc_lock);
	mutex_exit(&sc->sc_lock);
	return w.w_error;
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

/*
 * Device switch.
 */

/* Returns where a partition begins, in sectors of the disk. */
static uint64_t
xbd_partition(struct xbd_softc *sc, dev_t dev)
{
	const int part = DISKPART(dev);

	return part == RAW_PART ? 0 :
	    sc->sc_dksc.sc_dkdev.dk_label->d_partitions[part].p_offset;
}

int
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
	else if (bp->b_blkno % (info.sector_size / DEV_BSIZE) != 0 ||
	    bp->b_bcount % info.sector_size != 0) {
		/* dk_strategy() would round the first down. */
		error = EINVAL;
	}
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

#ifdef DIOCGSECTORALIGN
/* The best unit of I/O, and where the first one begins in a partition. */
static int
xbd_sectoralign(struct xbd_softc *sc, dev_t dev,
    const struct xenpv_xbd_info *info, struct disk_sectoralign *dsa)
{
	uint32_t unit;

	if (info->sector_size == 0)
		return ENXIO;
	unit = info->physical_sector_size / info->sector_size;
	dsa->dsa_alignment = unit;
	dsa->dsa_firstaligned =
	    (unit - xbd_partition(sc, dev) % unit) % unit;
	return 0;
}
#endif

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
		return xbd_do(sc, XENPV_XBD_SYNC, 0, 0);
#ifdef DIOCGSECTORALIGN
	case DIOCGSECTORALIGN:
		return xbd_sectoralign(sc, dev, &info, data);
#endif
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

/*
 * dk_discard() would do, if it didn't count sectors where its translation
 * counts DEV_BSIZE: on a disk of larger sectors that is another place.
 */
static int
xbddiscard(dev_t dev, off_t pos, off_t len)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));
	struct xenpv_xbd_info info;
	struct buf b;
	off_t at;
	int error, now, ok;

	if (sc == NULL || !xbd_running(sc, &info))
		return ENXIO;
	if (pos < 0 || len < 0 || pos % info.sector_size != 0 ||
	    len % info.sector_size != 0)
		return EINVAL;
	/* As for a write, before any of it is sent. */
	for (at = 0; at < len; at += now) {
		now = MIN(len - at, XBD_CHECK_MAX);
		memset(&b, 0, sizeof(b));
		b.b_flags = B_WRITE;
		b.b_dev = dev;
		b.b_blkno = (pos + at) / DEV_BSIZE;
		b.b_bcount = now;
		ok = DISKPART(dev) == RAW_PART ?
		    bounds_check_with_mediasize(&b, DEV_BSIZE, info.sectors) :
		    bounds_check_with_label(&sc->sc_dksc.sc_dkdev, &b,
			sc->sc_dksc.sc_flags & (DKF_WLABEL | DKF_LABELLING));
		if (ok <= 0 || b.b_bcount != now)
			return b.b_error != 0 ? b.b_error : EINVAL;
	}
	if (len == 0)
		return 0;
	error = xbd_do(sc, XENPV_XBD_DISCARD, pos / DEV_BSIZE +
	    xbd_partition(sc, dev) * (info.sector_size / DEV_BSIZE), len);
	/* As from a driver that knows no discard. */
	return error == EOPNOTSUPP ? ENODEV : error;
}

static int
xbddump(dev_t dev, daddr_t blkno, void *va, size_t size)
{
	struct xbd_softc *sc = device_lookup_private(&xbd_cd, DISKUNIT(dev));
	unsigned int secsize;

	if (sc == NULL || sc->sc_state != XBD_RUNNING)
		return ENXIO;
	secsize = sc->sc_info.sector_size;
	/* dk_dump() would round the first down. */
	if (blkno % (secsize / DEV_BSIZE) != 0 || size % secsize != 0)
		return EINVAL;
#if __NetBSD_Version__ >= 1000000000
	return dk_dump(&sc->sc_dksc, dev, blkno, va, size, 0);
#else
	return dk_dump(&sc->sc_dksc, dev, blkno, va, size);
#endif
}
