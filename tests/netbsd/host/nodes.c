/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel's device nodes, as vnodes have them: calls into the driver
 * are counted, and a node whose device goes is closed, and answers no more.
 */

#include <kernel.h>

#include "port.h"

extern const struct bdevsw xbd_bdevsw;
extern const struct cdevsw xbd_cdevsw;

#define	MINORS	(HOST_UNITS * MAXPARTITIONS)

/* A device node, as a vnode has it. */
struct node {
	int	busy;			/* calls into the driver */
	int	opens;
	bool	dead;
};
static struct node nodes[2][MINORS];	/* VCHR, VBLK */
static kmutex_t node_lock;
static kcondvar_t node_cv;

void
port_nodes_init(void)
{

	mutex_init(&node_lock, MUTEX_DEFAULT, IPL_NONE);
	cv_init(&node_cv, "node");
}

/* A device has gone, and another may come of the same number. */
void
port_nodes_revive(int unit)
{
	int mn;

	mutex_enter(&node_lock);
	for (mn = 0; mn < MAXPARTITIONS; mn++) {
		nodes[0][DISKMINOR(unit, mn)].dead = false;
		nodes[1][DISKMINOR(unit, mn)].dead = false;
	}
	mutex_exit(&node_lock);
}

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

int
host_discard(int mn, int64_t pos, int64_t len)
{
	int error;

	if (!node_enter(true, mn))
		return ENXIO;
	error = (*xbd_bdevsw.d_discard)(makedev(VBLK, mn), pos, len);
	node_exit(true, mn, 0);
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
