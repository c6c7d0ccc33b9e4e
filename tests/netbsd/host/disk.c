/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel's buffers, disk(9) and dk(9). It does what the glue may rely
 * on, and holds it to what the kernel relies on: a buf ends once.
 */

#include <kernel.h>

#include "port.h"

extern struct cfdriver xbd_cd;

static kmutex_t bio_lock;		/* what follows, and b_ended */
static kcondvar_t bio_cv;

void
port_disks_init(void)
{

	mutex_init(&bio_lock, MUTEX_DEFAULT, IPL_VM);
	cv_init(&bio_cv, "bio");
}

/*
 * Buffers.
 */

struct buf *
host_buf(int mn, bool read, int64_t blkno, void *data, size_t len)
{
	struct buf *bp = kmem_zalloc(sizeof(*bp), KM_SLEEP);

	bp->b_flags = read ? B_READ : B_WRITE;
	bp->b_dev = makedev(VBLK, mn);
	bp->b_blkno = blkno;
	bp->b_data = data;
	bp->b_bcount = len;
	bp->b_resid = len;
	return bp;
}

void
biodone(struct buf *bp)
{

	mutex_enter(&bio_lock);
	if (bp->b_ended++ != 0)
		panic("a buf ends twice");
	cv_broadcast(&bio_cv);
	mutex_exit(&bio_lock);
}

int
biowait(struct buf *bp)
{

	mutex_enter(&bio_lock);
	while (bp->b_ended == 0)
		cv_wait(&bio_cv, &bio_lock);
	mutex_exit(&bio_lock);
	return bp->b_error;
}

int
host_biowait(struct buf *bp)
{

	return biowait(bp);
}

bool
host_is_over(struct buf *bp)
{
	bool over;

	mutex_enter(&bio_lock);
	over = bp->b_ended != 0;
	mutex_exit(&bio_lock);
	return over;
}

void
host_buf_free(struct buf *bp)
{

	KASSERT(bp->b_ended == 1);
	kmem_free(bp, sizeof(*bp));
}

void
minphys(struct buf *bp)
{

	if (bp->b_bcount > MAXPHYS)
		bp->b_bcount = MAXPHYS;
}

int
physio(void (*strategy)(struct buf *), struct buf *obp, dev_t dev, int flags,
    void (*min)(struct buf *), struct uio *uio)
{
	struct buf *bp;
	int error = 0;

	KASSERT(obp == NULL);
	while (uio->resid > 0 && error == 0) {
		bp = host_buf(minor(dev), flags == B_READ,
		    uio->offset / DEV_BSIZE, uio->data, uio->resid);
		(*min)(bp);
		bp->b_resid = bp->b_bcount;
		(*strategy)(bp);
		error = biowait(bp);
		uio->data += bp->b_bcount;
		uio->offset += bp->b_bcount;
		uio->resid -= bp->b_bcount;
		host_buf_free(bp);
	}
	return error;
}

/*
 * Queues of bufs: first come, first served.
 */

struct bufq_state {
	struct buf	*first;
	struct buf	*last;
};

int
bufq_alloc(struct bufq_state **bufq, const char *strategy, int flags)
{

	(void)strategy, (void)flags;
	*bufq = kmem_zalloc(sizeof(**bufq), KM_SLEEP);
	return 0;
}

void
bufq_free(struct bufq_state *bufq)
{

	KASSERT(bufq->first == NULL);
	kmem_free(bufq, sizeof(*bufq));
}

static void
bufq_put(struct bufq_state *bufq, struct buf *bp)
{

	bp->b_next = NULL;
	if (bufq->first == NULL)
		bufq->first = bp;
	else
		bufq->last->b_next = bp;
	bufq->last = bp;
}

static struct buf *
bufq_get(struct bufq_state *bufq)
{
	struct buf *bp = bufq->first;

	if (bp != NULL)
		bufq->first = bp->b_next;
	return bp;
}

/*
 * disk(9), dk(9).
 */

void
disk_init(struct disk *dk, const char *name, const struct dkdriver *driver)
{

	dk->dk_name = name;
	dk->dk_driver = driver;
	mutex_init(&dk->dk_openlock, MUTEX_DEFAULT, IPL_NONE);
}

void
disk_destroy(struct disk *dk)
{

	KASSERT(!dk->dk_listed && dk->dk_openmask == 0);
	mutex_destroy(&dk->dk_openlock);
}

void
disk_attach(struct disk *dk)
{

	dk->dk_label = kmem_zalloc(sizeof(*dk->dk_label), KM_SLEEP);
	dk->dk_listed = true;
}

void
disk_detach(struct disk *dk)
{

	KASSERT(dk->dk_listed);
	dk->dk_listed = false;
	kmem_free(dk->dk_label, sizeof(*dk->dk_label));
}

int
disk_begindetach(struct disk *dk, int (*lastclose)(device_t), device_t dev,
    int flags)
{
	int error = 0;

	mutex_enter(&dk->dk_openlock);
	if (dk->dk_openmask != 0)
		error = (flags & DETACH_FORCE) == 0 ? EBUSY :
		    (*lastclose)(dev);
	mutex_exit(&dk->dk_openlock);
	return error;
}

void
disk_set_info(device_t dev, struct disk *dk, const char *type)
{

	(void)dev, (void)type;
	KASSERT(dk->dk_geom.dg_secsize >= DEV_BSIZE);
	/* Later ones replace what disk_ioctl() looks at. */
	KASSERT(dk->dk_told++ == 0 || mutex_owned(&dk->dk_openlock));
	for (dk->dk_blkshift = 0;
	    DEV_BSIZE << dk->dk_blkshift < (int)dk->dk_geom.dg_secsize;)
		dk->dk_blkshift++;
}

/* Tells whether a transfer lies in so many units, and cuts it if its end is not. */
static bool
bounds(struct buf *bp, int unit, uint64_t size)
{
	int64_t sz = (bp->b_bcount + unit - 1) / unit;

	if (bp->b_blkno < 0) {
		bp->b_error = EINVAL;
		return false;
	}
	if (bp->b_blkno + sz > (int64_t)size) {
		sz = size - bp->b_blkno;
		if (sz < 0)
			bp->b_error = EINVAL;
		if (sz <= 0)
			return false;
		bp->b_bcount = sz * unit;
	}
	return true;
}

int
bounds_check_with_mediasize(struct buf *bp, int secsize, uint64_t size)
{

	return bounds(bp, secsize, size);
}

/* The label, in the second sector of the disk, is not written by accident. */
int
bounds_check_with_label(struct disk *dk, struct buf *bp, int wlabel)
{
	const struct partition *p = &dk->dk_label->d_partitions[
	    DISKPART(bp->b_dev)];
	const int64_t label = (int64_t)1 << dk->dk_blkshift;
	int64_t start = (int64_t)p->p_offset << dk->dk_blkshift;

	if (!bounds(bp, DEV_BSIZE, (uint64_t)p->p_size << dk->dk_blkshift))
		return bp->b_error != 0 ? -1 : 0;
	start += bp->b_blkno;
	if (start <= label && start + bp->b_bcount / DEV_BSIZE > label &&
	    (bp->b_flags & B_READ) == 0 && wlabel == 0) {
		bp->b_error = EROFS;
		return -1;
	}
	return 1;
}

/* Looks at the beginning of the disk, as whoever looks for a label. */
void
dkwedge_discover(struct disk *dk)
{
	int mn = MAXPARTITIONS * (dk->dk_name[strlen(dk->dk_name) - 1] - '0');
	vaddr_t va;
	struct buf *bp;

	__atomic_store_n(&dk->dk_searched, dk->dk_geom.dg_secperunit,
	    __ATOMIC_RELEASE);
	if (host_open(true, mn, FREAD) != 0) {
		printf("%s: can't be opened for its label\n", dk->dk_name);
		return;
	}
	va = uvm_km_alloc(kernel_map, PAGE_SIZE, 0, UVM_KMF_WIRED);
	if (va != 0) {
		bp = host_buf(mn, true, 0, (void *)va, dk->dk_geom.dg_secsize);
		host_strategy(bp);
		(void)biowait(bp);
		host_buf_free(bp);
		uvm_km_free(kernel_map, va, PAGE_SIZE, UVM_KMF_WIRED);
	} else
		printf("%s: no memory for its label\n", dk->dk_name);
	host_close(true, mn);
}

void
dkwedge_delall(struct disk *dk)
{

	(void)dk;
	port_may_sleep("dkwedge_delall");
}

void
dk_init(struct dk_softc *dksc, device_t dev, int type)
{

	(void)type;
	memset(dksc, 0, sizeof(*dksc));
	dksc->sc_dev = dev;
}

void
dk_attach(struct dk_softc *dksc)
{

	mutex_init(&dksc->sc_iolock, MUTEX_DEFAULT, IPL_VM);
	__atomic_store_n(&dksc->sc_attached, 1, __ATOMIC_RELEASE);
}

void
dk_detach(struct dk_softc *dksc)
{

	__atomic_store_n(&dksc->sc_attached, 0, __ATOMIC_RELEASE);
	KASSERT(dksc->sc_deferred == NULL);
	mutex_destroy(&dksc->sc_iolock);
}

/* Partition a is the whole disk, b its second half. */
static void
make_label(struct dk_softc *dksc)
{
	struct disk *dk = &dksc->sc_dkdev;
	struct disklabel *lp = dk->dk_label;
	const uint32_t size = dk->dk_geom.dg_secperunit;

	memset(lp, 0, sizeof(*lp));
	lp->d_partitions[0].p_size = lp->d_partitions[RAW_PART].p_size = size;
	lp->d_partitions[1].p_offset = size / 2;
	lp->d_partitions[1].p_size = size - size / 2;
}

int
dk_open(struct dk_softc *dksc, dev_t dev, int flags, int fmt, struct lwp *l)
{
	struct disk *dk = &dksc->sc_dkdev;

	(void)flags, (void)l;
	if (!DK_ATTACHED(dksc))
		return ENXIO;
	mutex_enter(&dk->dk_openlock);
	if (dk->dk_openmask == 0)
		make_label(dksc);
	*(fmt == VBLK ? &dk->dk_bopenmask : &dk->dk_copenmask) |=
	    1U << DISKPART(dev);
	dk->dk_openmask = dk->dk_bopenmask | dk->dk_copenmask;
	mutex_exit(&dk->dk_openlock);
	return 0;
}

int
dk_close(struct dk_softc *dksc, dev_t dev, int flags, int fmt, struct lwp *l)
{
	struct disk *dk = &dksc->sc_dkdev;

	(void)flags, (void)l;
	mutex_enter(&dk->dk_openlock);
	*(fmt == VBLK ? &dk->dk_bopenmask : &dk->dk_copenmask) &=
	    ~(1U << DISKPART(dev));
	dk->dk_openmask = dk->dk_bopenmask | dk->dk_copenmask;
	if (dk->dk_openmask == 0 && dk->dk_driver->d_lastclose != NULL)
		(*dk->dk_driver->d_lastclose)(dksc->sc_dev);
	mutex_exit(&dk->dk_openlock);
	return 0;
}

unsigned int
host_openmask(int unit)
{
	struct dk_softc *dksc = device_lookup_private(&xbd_cd, unit);
	unsigned int mask;

	mutex_enter(&dksc->sc_dkdev.dk_openlock);
	mask = dksc->sc_dkdev.dk_openmask;
	mutex_exit(&dksc->sc_dkdev.dk_openlock);
	return mask;
}

/* Holds the lock of opens, as whoever opens it does for its label. */
void
host_openlock(int unit, bool hold)
{
	struct dk_softc *dksc = device_lookup_private(&xbd_cd, unit);

	if (hold)
		mutex_enter(&dksc->sc_dkdev.dk_openlock);
	else
		mutex_exit(&dksc->sc_dkdev.dk_openlock);
}

/* Returns how large the disk was when wedges were last looked for. */
int64_t
host_searched(int unit)
{
	struct dk_softc *dksc = device_lookup_private(&xbd_cd, unit);

	return __atomic_load_n(&dksc->sc_dkdev.dk_searched, __ATOMIC_ACQUIRE);
}

/* A place between two sectors of the disk is the first of them, as in NetBSD. */
void
dk_strategy(struct dk_softc *dksc, struct buf *bp)
{
	const struct disk *dk = &dksc->sc_dkdev;
	const struct disk_geom *dg = &dk->dk_geom;
	const int unit = dg->dg_secsize / DEV_BSIZE;
	int64_t left = dg->dg_secperunit * unit - bp->b_blkno;

	if (!DK_ATTACHED(dksc))
		bp->b_error = ENXIO;
	else if (bp->b_blkno < 0 || left < 0)
		bp->b_error = EINVAL;
	else if (left < bp->b_bcount / DEV_BSIZE)
		bp->b_error = left == 0 ? 0 : EINVAL;
	else {
		bp->b_rawblkno = bp->b_blkno / unit +
		    dk->dk_label->d_partitions[DISKPART(bp->b_dev)].p_offset;
		dk_start(dksc, bp);
		return;
	}
	biodone(bp);
}

/*
 * Gives what is queued to the driver. Whoever finds somebody at it leaves
 * word, and they go round once more: a driver that was full may have room.
 */
void
dk_start(struct dk_softc *dksc, struct buf *bp)
{
	const struct dkdriver *driver = dksc->sc_dkdev.dk_driver;
	int error;

	mutex_enter(&dksc->sc_iolock);
	if (bp != NULL)
		bufq_put(dksc->sc_bufq, bp);
	if (dksc->sc_busy < 2)
		dksc->sc_busy++;
	if (dksc->sc_busy > 1) {
		mutex_exit(&dksc->sc_iolock);
		return;
	}
	for (; dksc->sc_busy > 0; dksc->sc_busy--) {
		for (;;) {
			bp = dksc->sc_deferred;
			dksc->sc_deferred = NULL;
			if (bp == NULL)
				bp = bufq_get(dksc->sc_bufq);
			if (bp == NULL)
				break;
			mutex_exit(&dksc->sc_iolock);
			error = (*driver->d_diskstart)(dksc->sc_dev, bp);
			if (error != 0 && error != EAGAIN) {
				bp->b_error = error;
				bp->b_resid = bp->b_bcount;
				biodone(bp);
			}
			mutex_enter(&dksc->sc_iolock);
			if (error == EAGAIN) {
				KASSERT(dksc->sc_deferred == NULL);
				dksc->sc_deferred = bp;
				break;
			}
		}
	}
	mutex_exit(&dksc->sc_iolock);
}

void
dk_done(struct dk_softc *dksc, struct buf *bp)
{

	if (bp->b_resid != (bp->b_error != 0 ? bp->b_bcount : 0))
		panic("a transfer ends with an odd rest");
	if (bp->b_error != 0)
		printf("%s: error %d at %" PRId64 "\n",
		    dksc->sc_dkdev.dk_name, bp->b_error, bp->b_blkno);
	biodone(bp);
}

int
dk_drain(struct dk_softc *dksc)
{
	struct buf *bp, *next;

	mutex_enter(&dksc->sc_iolock);
	bp = dksc->sc_bufq->first;
	dksc->sc_bufq->first = NULL;
	if (dksc->sc_deferred != NULL) {
		dksc->sc_deferred->b_next = bp;
		bp = dksc->sc_deferred;
		dksc->sc_deferred = NULL;
	}
	mutex_exit(&dksc->sc_iolock);
	for (; bp != NULL; bp = next) {
		next = bp->b_next;
		bp->b_error = EIO;
		bp->b_resid = bp->b_bcount;
		biodone(bp);
	}
	return 0;
}

int
dk_size(struct dk_softc *dksc, dev_t dev)
{
	const struct disk_geom *dg = &dksc->sc_dkdev.dk_geom;

	(void)dev;
	return dg->dg_secperunit * (dg->dg_secsize / DEV_BSIZE);
}

int
dk_ioctl(struct dk_softc *dksc, dev_t dev, u_long cmd, void *data, int flag,
    struct lwp *l)
{

	const struct disk_geom *dg = &dksc->sc_dkdev.dk_geom;

	(void)dev, (void)flag, (void)l;
	switch (cmd) {
	case DIOCGSECTORSIZE:
		*(u_int *)data = dg->dg_secsize;
		return 0;
	case DIOCGMEDIASIZE:
		*(off_t *)data = dg->dg_secperunit * (off_t)dg->dg_secsize;
		return 0;
	default:
		return ENOTTY;
	}
}

int
dk_dump(struct dk_softc *dksc, dev_t dev, daddr_t blkno, void *va,
    size_t size, int flags)
{
	const struct dkdriver *driver = dksc->sc_dkdev.dk_driver;
	const size_t secsize = dksc->sc_dkdev.dk_geom.dg_secsize;
	const size_t max = MAXPHYS;
	int error;
	size_t now;

	(void)dev, (void)flags;
	if (!DK_ATTACHED(dksc))
		return ENXIO;
	/* A place between two sectors is the first of them, as in NetBSD. */
	for (blkno /= secsize / DEV_BSIZE; size > 0; size -= now) {
		now = size < max ? size : max;
		error = (*driver->d_dumpblocks)(dksc->sc_dev, va, blkno,
		    now / secsize);
		if (error != 0)
			return error;
		va = (char *)va + now;
		blkno += now / secsize;
	}
	return 0;
}
