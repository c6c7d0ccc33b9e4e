/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel as the glue's disk sees it: autoconf(9), dk(9), buffers
 * and the device switch. It does what the glue may rely on, and holds it to
 * what the kernel relies on: a buf ends once, nothing is busy that goes.
 */

#include <kernel.h>

#include "port.h"

#define	UNITS	4
#define	MINORS	(UNITS * MAXPARTITIONS)

struct device {
	char			xname[16];
	int			unit;
	void			*private;
	const struct cfattach	*ca;
	struct cfdriver		*cd;
	int			pending;
	bool			power;	/* pmf_device_register() was called */
	struct xenbus_device	xbusd;
};

static struct {
	const struct cfattach	*ca;
	struct cfdriver		*cd;
	const char		*type;
	struct device		*units[UNITS];
} drivers[2];

static kmutex_t bio_lock;		/* what follows, and b_ended */
static kcondvar_t bio_cv;

/* A device node, as a vnode has it. */
struct node {
	int	busy;			/* calls into the driver */
	int	opens;
	bool	dead;
};
static struct node nodes[2][MINORS];	/* VCHR, VBLK */
static kmutex_t node_lock;
static kcondvar_t node_cv;

static int pending;			/* config_pending_incr()s */

#define	SYSCTLS	32
struct sysctllog {
	struct sysctlnode	nodes[SYSCTLS];
	int			count;
};
static struct sysctllog *sysctls;	/* the last disk's */

void
host_boot(void)
{

	mutex_init(&bio_lock, MUTEX_DEFAULT, IPL_VM);
	cv_init(&bio_cv, "bio");
	mutex_init(&node_lock, MUTEX_DEFAULT, IPL_NONE);
	cv_init(&node_cv, "node");
}

/*
 * Log.
 */

#define	SAY(fmt) do {							\
	va_list ap;							\
									\
	va_start(ap, fmt);						\
	port_vsay(fmt, ap);						\
	va_end(ap);							\
} while (0)
#define	SAY_DEV(dev, fmt) do {						\
	char name[20] = "";						\
									\
	memcpy(name, (dev)->xname, strlen((dev)->xname));		\
	memcpy(name + strlen(name), ": ", 3);				\
	host_say(name, strlen(name));					\
	SAY(fmt);							\
} while (0)

void
printf(const char *fmt, ...)
{

	SAY(fmt);
}

void
aprint_naive(const char *fmt, ...)
{

	(void)fmt;
}

void
aprint_normal(const char *fmt, ...)
{

	SAY(fmt);
}

void
aprint_verbose(const char *fmt, ...)
{

	SAY(fmt);
}

void
aprint_debug(const char *fmt, ...)
{

	SAY(fmt);
}

void
device_printf(device_t dev, const char *fmt, ...)
{

	SAY_DEV(dev, fmt);
}

void
aprint_normal_dev(device_t dev, const char *fmt, ...)
{

	SAY_DEV(dev, fmt);
}

void
aprint_verbose_dev(device_t dev, const char *fmt, ...)
{

	SAY_DEV(dev, fmt);
}

void
aprint_error_dev(device_t dev, const char *fmt, ...)
{

	SAY_DEV(dev, fmt);
}

int
format_bytes(char *buf, size_t size, uint64_t bytes)
{

	(void)bytes;
	if (size < 2)
		panic("format_bytes without room");
	memcpy(buf, "?", 2);
	return 1;
}

/*
 * autoconf(9).
 */

void
host_driver(const struct cfattach *ca, struct cfdriver *cd, const char *type)
{
	int i = drivers[0].ca == NULL ? 0 : 1;

	drivers[i].ca = ca;
	drivers[i].cd = cd;
	drivers[i].type = type;
}

static struct device *
lookup(struct cfdriver *cd, int unit)
{
	unsigned int i;

	for (i = 0; i < __arraycount(drivers); i++) {
		if (drivers[i].cd == cd && unit >= 0 && unit < UNITS)
			return __atomic_load_n(&drivers[i].units[unit],
			    __ATOMIC_ACQUIRE);
	}
	return NULL;
}

/* Attaches what xenbus, or the main bus, has found. */
struct device *
host_config_found(const char *type, int id, const char *path)
{
	int locators[] = { -1 };
	struct cfdata cf = { locators };
	struct xenbusdev_attach_args xa = { .xa_type = type, .xa_id = id };
	struct xencons_attach_args xca = { type };
	struct device *dev;
	void *aux;
	int i, unit;

	port_may_sleep("config_found");
	for (i = 0; i < 2 && drivers[i].ca != NULL; i++) {
		if (strcmp(drivers[i].type, type) == 0)
			break;
	}
	if (i == 2 || drivers[i].ca == NULL)
		return NULL;
	aux = path != NULL ? (void *)&xa : (void *)&xca;
	if (!(*drivers[i].ca->ca_match)(NULL, &cf, aux))
		return NULL;
	for (unit = 0; lookup(drivers[i].cd, unit) != NULL; unit++)
		KASSERT(unit < UNITS - 1);
	dev = kmem_zalloc(sizeof(*dev), KM_SLEEP);
	dev->unit = unit;
	memcpy(dev->xname, drivers[i].cd->cd_name,
	    strlen(drivers[i].cd->cd_name));
	dev->xname[strlen(dev->xname)] = '0' + unit;
	dev->ca = drivers[i].ca;
	dev->cd = drivers[i].cd;
	dev->private = kmem_zalloc(dev->ca->ca_devsize, KM_SLEEP);
	dev->xbusd.xbusd_path = path;
	xa.xa_xbusd = &dev->xbusd;
	__atomic_store_n(&drivers[i].units[unit], dev, __ATOMIC_RELEASE);
	printf("%s at xenbus0", dev->xname);
	/* It is found by its number from now on, so a user may be faster. */
	if (path != NULL && (host_open(true, DISKMINOR(unit, 0), FREAD) == 0 ||
	    host_size(DISKMINOR(unit, 0)) != -1))
		panic("%s is open before it is attached", dev->xname);
	(*dev->ca->ca_attach)(NULL, dev, aux);
	return dev;
}

int
host_config_detach(struct device *dev, int flags)
{
	unsigned int i;
	int error, mn;

	port_may_sleep("config_detach");
	error = (*dev->ca->ca_detach)(dev, flags);
	if (error != 0) {
		if ((flags & DETACH_FORCE) != 0)
			panic("%s: forced detach failed: %d", dev->xname,
			    error);
		return error;
	}
	KASSERT(dev->pending == 0 && !dev->power);
	for (i = 0; i < __arraycount(drivers); i++) {
		if (drivers[i].cd == dev->cd)
			__atomic_store_n(&drivers[i].units[dev->unit], NULL,
			    __ATOMIC_RELEASE);
	}
	mutex_enter(&node_lock);
	for (mn = 0; mn < MAXPARTITIONS; mn++) {
		nodes[0][DISKMINOR(dev->unit, mn)].dead = false;
		nodes[1][DISKMINOR(dev->unit, mn)].dead = false;
	}
	mutex_exit(&node_lock);
	printf("%s: detached\n", dev->xname);
	kmem_free(dev->private, dev->ca->ca_devsize);
	kmem_free(dev, sizeof(*dev));
	return 0;
}

const char *
device_xname(device_t dev)
{

	return dev->xname;
}

int
device_unit(device_t dev)
{

	return dev->unit;
}

void *
device_private(device_t dev)
{

	return dev->private;
}

void *
device_lookup_private(struct cfdriver *cd, int unit)
{
	struct device *dev = lookup(cd, unit);

	return dev != NULL ? dev->private : NULL;
}

void
config_pending_incr(device_t dev)
{

	mutex_enter(&node_lock);
	dev->pending++;
	pending++;
	mutex_exit(&node_lock);
}

void
config_pending_decr(device_t dev)
{

	mutex_enter(&node_lock);
	KASSERT(dev->pending > 0);
	dev->pending--;
	pending--;
	mutex_exit(&node_lock);
}

/* Returns how many devices keep the kernel from looking for its root. */
int
host_pending(void)
{
	int now;

	mutex_enter(&node_lock);
	now = pending;
	mutex_exit(&node_lock);
	return now;
}

bool
pmf_device_register(device_t dev,
    bool (*suspend)(device_t, const pmf_qual_t *),
    bool (*resume)(device_t, const pmf_qual_t *))
{

	(void)suspend, (void)resume;
	dev->power = true;
	return true;
}

void
pmf_device_deregister(device_t dev)
{

	dev->power = false;
}

/*
 * once(9), spl(9).
 */

int
run_once(once_t *o, int (*init)(void))
{

	port_may_sleep("RUN_ONCE");
	mutex_enter(&node_lock);
	if (o->o_done == 0) {
		(*init)();
		o->o_done = 1;
	}
	mutex_exit(&node_lock);
	return 0;
}

int
splvm(void)
{

	return port_splraise(IPL_VM);
}

/*
 * Device nodes: calls into the driver are counted, and a node whose device
 * goes is closed, and answers no more.
 */

static bool
node_enter(bool block, int mn)
{
	struct node *n = &nodes[block][mn];
	bool dead;

	mutex_enter(&node_lock);
	dead = n->dead;
	if (!dead)
		n->busy++;
	mutex_exit(&node_lock);
	return !dead;
}

static void
node_exit(bool block, int mn, int opens)
{
	struct node *n = &nodes[block][mn];

	mutex_enter(&node_lock);
	n->busy--;
	n->opens += opens;
	cv_broadcast(&node_cv);
	mutex_exit(&node_lock);
}

int
bdevsw_lookup_major(const struct bdevsw *sw)
{

	(void)sw;
	return VBLK;
}

int
cdevsw_lookup_major(const struct cdevsw *sw)
{

	(void)sw;
	return VCHR;
}

void
vdevgone(int maj, int low, int high, enum vtype type)
{
	struct node *n;
	int mn;

	port_may_sleep("vdevgone");
	KASSERT(maj == (int)type);
	for (mn = low; mn <= high; mn++) {
		n = &nodes[type == VBLK][mn];
		mutex_enter(&node_lock);
		n->dead = true;
		while (n->busy != 0)
			cv_wait(&node_cv, &node_lock);
		if (n->opens != 0) {
			n->opens = 0;
			mutex_exit(&node_lock);
			if (type == VBLK)
				(*xbd_bdevsw.d_close)(makedev(maj, mn), 0,
				    VBLK, NULL);
			else
				(*xbd_cdevsw.d_close)(makedev(maj, mn), 0,
				    VCHR, NULL);
			mutex_enter(&node_lock);
		}
		mutex_exit(&node_lock);
	}
}

int
host_open(bool block, int mn, int flags)
{
	dev_t dev = makedev(block ? VBLK : VCHR, mn);
	int error;

	if (!node_enter(block, mn))
		return ENXIO;
	error = block ?
	    (*xbd_bdevsw.d_open)(dev, flags, VBLK, NULL) :
	    (*xbd_cdevsw.d_open)(dev, flags, VCHR, NULL);
	node_exit(block, mn, error == 0 ? 1 : 0);
	return error;
}

/* The driver is told of the last close only, as from a vnode. */
int
host_close(bool block, int mn)
{
	dev_t dev = makedev(block ? VBLK : VCHR, mn);
	int error = 0, opens;

	if (!node_enter(block, mn))
		return 0;
	mutex_enter(&node_lock);
	opens = nodes[block][mn].opens;
	mutex_exit(&node_lock);
	if (opens == 1)
		error = block ?
		    (*xbd_bdevsw.d_close)(dev, 0, VBLK, NULL) :
		    (*xbd_cdevsw.d_close)(dev, 0, VCHR, NULL);
	/* None: the device went, which has closed it. */
	node_exit(block, mn, opens > 0 ? -1 : 0);
	return error;
}

int
host_ioctl(int mn, unsigned long cmd, void *data)
{
	int error;

	if (!node_enter(false, mn))
		return ENXIO;
	error = (*xbd_cdevsw.d_ioctl)(makedev(VCHR, mn), cmd, data, FREAD,
	    NULL);
	node_exit(false, mn, 0);
	return error;
}

int
host_size(int mn)
{

	return (*xbd_bdevsw.d_psize)(makedev(VBLK, mn));
}

/* After a panic: there are no nodes any more, nor anybody who waits. */
int
host_dump(int mn, int64_t blkno, void *va, size_t size)
{

	return (*xbd_bdevsw.d_dump)(makedev(VBLK, mn), blkno, va, size);
}

struct uio {
	char	*data;
	size_t	resid;
	int64_t	offset;
};

/* Reads or writes by the character device. */
int
host_rawio(int mn, bool write, void *data, size_t len, int64_t offset)
{
	struct uio uio = { data, len, offset };
	int error;

	if (!node_enter(false, mn))
		return ENXIO;
	error = write ?
	    (*xbd_cdevsw.d_write)(makedev(VCHR, mn), &uio, 0) :
	    (*xbd_cdevsw.d_read)(makedev(VCHR, mn), &uio, 0);
	node_exit(false, mn, 0);
	return error;
}

void
nostop(struct tty *tp, int flag)
{

	(void)tp, (void)flag;
}

struct tty *
notty(dev_t dev)
{

	(void)dev;
	return NULL;
}

int
nopoll(dev_t dev, int events, struct lwp *l)
{

	(void)dev, (void)events, (void)l;
	return 0;
}

vaddr_t
nommap(dev_t dev, int64_t offset, int prot)
{

	(void)dev, (void)offset, (void)prot;
	return (vaddr_t)-1;
}

int
nokqfilter(dev_t dev, struct knote *kn)
{

	(void)dev, (void)kn;
	return EOPNOTSUPP;
}

int
nodiscard(dev_t dev, int64_t offset, int64_t len)
{

	(void)dev, (void)offset, (void)len;
	return ENODEV;
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
host_strategy(struct buf *bp)
{
	int mn = minor(bp->b_dev);

	if (!node_enter(true, mn)) {
		bp->b_error = ENXIO;
		biodone(bp);
		return;
	}
	(*xbd_bdevsw.d_strategy)(bp);
	node_exit(true, mn, 0);
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

	dk->dk_listed = true;
}

void
disk_detach(struct disk *dk)
{

	KASSERT(dk->dk_listed);
	dk->dk_listed = false;
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
}

/* Looks at the beginning of the disk, as whoever looks for a label. */
void
dkwedge_discover(struct disk *dk)
{
	int mn = MAXPARTITIONS * (dk->dk_name[strlen(dk->dk_name) - 1] - '0');
	vaddr_t va;
	struct buf *bp;

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

int
dk_open(struct dk_softc *dksc, dev_t dev, int flags, int fmt, struct lwp *l)
{
	struct disk *dk = &dksc->sc_dkdev;

	(void)flags, (void)l;
	if (!DK_ATTACHED(dksc))
		return ENXIO;
	mutex_enter(&dk->dk_openlock);
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
	struct dk_softc *dksc = drivers[0].units[unit]->private;
	unsigned int mask;

	mutex_enter(&dksc->sc_dkdev.dk_openlock);
	mask = dksc->sc_dkdev.dk_openmask;
	mutex_exit(&dksc->sc_dkdev.dk_openlock);
	return mask;
}

void
dk_strategy(struct dk_softc *dksc, struct buf *bp)
{
	const struct disk_geom *dg = &dksc->sc_dkdev.dk_geom;
	const int unit = dg->dg_secsize / DEV_BSIZE;
	int64_t left = dg->dg_secperunit * unit - bp->b_blkno;

	if (!DK_ATTACHED(dksc))
		bp->b_error = ENXIO;
	else if (bp->b_blkno < 0 || left < 0 || bp->b_blkno % unit != 0)
		bp->b_error = EINVAL;
	else if (left < bp->b_bcount / DEV_BSIZE)
		bp->b_error = left == 0 ? 0 : EINVAL;
	else {
		bp->b_rawblkno = bp->b_blkno / unit;
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

	(void)dksc, (void)dev, (void)cmd, (void)data, (void)flag, (void)l;
	return ENOTTY;
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

/*
 * sysctl(9).
 */

int
sysctl_createv(struct sysctllog **log, int flags,
    const struct sysctlnode **parent, const struct sysctlnode **made,
    int cflags, int type, const char *name, const char *about,
    int (*func)(SYSCTLFN_ARGS), uint64_t value, void *data, size_t len, ...)
{
	struct sysctlnode *node;

	(void)flags, (void)cflags, (void)type, (void)about, (void)value;
	(void)len, (void)parent;
	if (*log == NULL) {
		*log = kmem_zalloc(sizeof(**log), KM_SLEEP);
		sysctls = *log;
	}
	KASSERT((*log)->count < SYSCTLS);
	node = &(*log)->nodes[(*log)->count++];
	node->sysctl_name = name;
	node->sysctl_func = func;
	node->sysctl_data = data;
	if (made != NULL)
		*made = node;
	return 0;
}

void
sysctl_teardown(struct sysctllog **log)
{

	if (*log == NULL)
		return;
	if (sysctls == *log)
		sysctls = NULL;
	kmem_free(*log, sizeof(**log));
	*log = NULL;
}

int
sysctl_lookup(SYSCTLFN_ARGS)
{

	KASSERT(*oldlenp == sizeof(uint64_t));
	memcpy(oldp, rnode->sysctl_data, sizeof(uint64_t));
	return 0;
}

/* Reads a counter of the disk that was attached last. */
bool
host_sysctl(const char *name, uint64_t *value)
{
	const struct sysctlnode *node;
	size_t len = sizeof(*value);
	int i;

	for (i = 0; sysctls != NULL && i < sysctls->count; i++) {
		node = &sysctls->nodes[i];
		if (strcmp(node->sysctl_name, name) == 0)
			return (*node->sysctl_func)(value, &len, node) == 0;
	}
	return false;
}
