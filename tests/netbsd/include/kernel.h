/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Not NetBSD's: written for the check of the glue, from the names that the
 * glue uses, and for the host that plays the kernel in its tests. What this
 * says of NetBSD is what we believe; only a build in a real kernel proves it.
 *
 * __NetBSD_Version__ chooses among the versions that the glue knows. Each is
 * given what it has and no other's, so that a wrong guard doesn't compile.
 */

#ifndef _KERNEL_H_
#define _KERNEL_H_

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __NetBSD_Version__
#define	__NetBSD_Version__	1099001200
#endif

/*
 * Words and types.
 */

#define	__KERNEL_RCSID(n, s)	struct __kernel_rcsid
#define	__dead			__attribute__((__noreturn__))
#define	__printflike(f, v)	__attribute__((__format__(__printf__, f, v)))
#define	__arraycount(a)		(sizeof(a) / sizeof((a)[0]))
#define	__UNVOLATILE(p)		((void *)(uintptr_t)(volatile void *)(p))
#define	CTASSERT_NAME2(n)	ctassert_##n
#define	CTASSERT_NAME(n)	CTASSERT_NAME2(n)
#define	CTASSERT(x)							\
	typedef char CTASSERT_NAME(__COUNTER__)[(x) ? 1 : -1]		\
	    __attribute__((__unused__))
#define	KASSERT(x)							\
	((x) ? (void)0 : panic("%s:%d: not so: %s", __FILE__, __LINE__, #x))
#define	MAX(a, b)		((a) > (b) ? (a) : (b))
#define	MIN(a, b)		((a) < (b) ? (a) : (b))
#define	SET(t, f)		((t) |= (f))
#define	PRIu64			"lu"
#define	PRId64			"ld"

typedef unsigned int	u_int;
typedef unsigned long	u_long;
typedef int64_t		daddr_t;
typedef int64_t		off_t;
typedef uint64_t	dev_t;
typedef unsigned long	paddr_t;
typedef unsigned long	vaddr_t;
typedef unsigned long	vsize_t;

#define	NODEV			((dev_t)-1)
#define	makedev(ma, mi)		((dev_t)(ma) << 32 | (dev_t)(mi))
#define	major(d)		((int)((d) >> 32))
#define	minor(d)		((int)(d))

#define	PAGE_SHIFT		12
#define	PAGE_SIZE		4096UL
#define	DEV_BSIZE		512
#define	MAXPHYS			(64 * 1024)
#define	MAXPARTITIONS		16
#define	RAW_PART		3
#define	DISKUNIT(d)		(minor(d) / MAXPARTITIONS)
#define	DISKPART(d)		(minor(d) % MAXPARTITIONS)
#define	DISKMINOR(u, p)		((u) * MAXPARTITIONS + (p))

/* NetBSD's numbers, whatever the machine's own are. */
#define	EPERM		1
#define	ENOENT		2
#define	ESRCH		3
#define	EIO		5
#define	ENXIO		6
#define	E2BIG		7
#define	ENOMEM		12
#define	EACCES		13
#define	EFAULT		14
#define	EBUSY		16
#define	EEXIST		17
#define	ENODEV		19
#define	EINVAL		22
#define	ENOTTY		25
#define	ENOSPC		28
#define	EROFS		30
#define	EAGAIN		35
#define	EWOULDBLOCK	EAGAIN
#define	EALREADY	37
#define	EOPNOTSUPP	45
#define	ETIMEDOUT	60
#define	ENOSYS		78
#define	EBADMSG		88
#define	EPASSTHROUGH	(-4)

size_t	strlen(const char *);
int	strcmp(const char *, const char *);
void	*memcpy(void *, const void *, size_t);
void	*memset(void *, int, size_t);
int	snprintf(char *, size_t, const char *, ...) __printflike(3, 4);

/*
 * Interrupt levels, locks, threads, time.
 */

#define	IPL_NONE	0
#define	IPL_SOFTCLOCK	1
#define	IPL_VM		5
#define	IPL_BIO		IPL_VM
#define	IPL_TTY		IPL_VM
#define	IPL_HIGH	8

int	splvm(void);
void	splx(int);
bool	cpu_intr_p(void);
bool	cpu_softintr_p(void);

struct cpu_info {
	int	ci_ilevel;
	u_int	ci_index;
};
extern int ncpu;
struct cpu_info	*curcpu(void);
u_int	cpu_index(const struct cpu_info *);
int	curlwp_bind(void);
void	curlwp_bindx(int);
void	kpreempt_disable(void);
void	kpreempt_enable(void);

struct kauth_cred;
struct lwp {
	struct kauth_cred	*l_cred;
};

typedef struct kmutex {
	struct port_mutex	*mtx_port;
} kmutex_t;
typedef struct kcondvar {
	struct port_cv		*cv_port;
} kcondvar_t;

#define	MUTEX_DEFAULT	0
void	mutex_init(kmutex_t *, int, int);
void	mutex_destroy(kmutex_t *);
void	mutex_enter(kmutex_t *);
void	mutex_exit(kmutex_t *);
int	mutex_tryenter(kmutex_t *);
void	mutex_spin_enter(kmutex_t *);
void	mutex_spin_exit(kmutex_t *);
int	mutex_owned(const kmutex_t *);

void	cv_init(kcondvar_t *, const char *);
void	cv_destroy(kcondvar_t *);
void	cv_wait(kcondvar_t *, kmutex_t *);
int	cv_timedwait(kcondvar_t *, kmutex_t *, int);
void	cv_signal(kcondvar_t *);
void	cv_broadcast(kcondvar_t *);

#define	PRI_NONE		(-1)
#define	KTHREAD_MPSAFE		1
#define	KTHREAD_MUSTJOIN	2
int	kthread_create(int, int, struct cpu_info *, void (*)(void *), void *,
	    struct lwp **, const char *, ...) __printflike(7, 8);
void	kthread_exit(int) __dead;
int	kthread_join(struct lwp *);
int	kpause(const char *, bool, int, kmutex_t *);

typedef struct once {
	int	o_done;
} once_t;
#define	ONCE_DECL(o)		once_t o
#define	RUN_ONCE(o, f)		run_once(o, f)
int	run_once(once_t *, int (*)(void));

u_int	atomic_swap_uint(volatile u_int *, u_int);
u_int	atomic_cas_uint(volatile u_int *, u_int, u_int);
void	*atomic_swap_ptr(volatile void *, void *);
void	*atomic_cas_ptr(volatile void *, void *, void *);

struct timespec {
	int64_t	tv_sec;
	long	tv_nsec;
};
void	nanouptime(struct timespec *);
struct timeval {
	int64_t	tv_sec;
	int	tv_usec;
};
int	ratecheck(struct timeval *, const struct timeval *);
typedef int64_t		time_t;
time_t	port_uptime(void);
#define	time_uptime		port_uptime()
extern int hz;
extern int cold;
void	port_delay(unsigned int);
#define	DELAY(us)		port_delay(us)

/*
 * Memory.
 */

#define	KM_SLEEP	1
#define	KM_NOSLEEP	2
void	*kmem_alloc(size_t, int);
void	*kmem_zalloc(size_t, int);
void	kmem_free(void *, size_t);
void	*kmem_intr_alloc(size_t, int);
void	kmem_intr_free(void *, size_t);

struct malloc_type;
extern struct malloc_type *const M_DEVBUF;
void	kern_free(void *);
#define	free(p, type)		((void)(type), kern_free(p))

struct vm_map;
extern struct vm_map *kernel_map;
#define	UVM_KMF_WIRED	0x01
#define	UVM_KMF_VAONLY	0x02
#define	UVM_KMF_ZERO	0x04
#define	UVM_KMF_CANFAIL	0x08
vaddr_t	uvm_km_alloc(struct vm_map *, vsize_t, vsize_t, unsigned int);
void	uvm_km_free(struct vm_map *, vaddr_t, vsize_t, unsigned int);

struct pmap;
struct pmap *pmap_kernel(void);
bool	pmap_extract(struct pmap *, vaddr_t, paddr_t *);
#if defined(XENPV) || __NetBSD_Version__ < 900000000
bool	pmap_extract_ma(struct pmap *, vaddr_t, paddr_t *);
#endif

/*
 * Log and panic.
 */

extern const char *volatile panicstr;
void	panic(const char *, ...) __dead __printflike(1, 2);
void	printf(const char *, ...) __printflike(1, 2);
void	aprint_naive(const char *, ...) __printflike(1, 2);
void	aprint_normal(const char *, ...) __printflike(1, 2);
void	aprint_verbose(const char *, ...) __printflike(1, 2);
void	aprint_debug(const char *, ...) __printflike(1, 2);
int	format_bytes(char *, size_t, uint64_t);

/*
 * Autoconfiguration.
 */

typedef struct device *device_t;
typedef struct cfdata *cfdata_t;
typedef struct pmf_qual pmf_qual_t;

struct cfdata {
	int	*cf_loc;
};
struct cfdriver {
	const char	*cd_name;
};
struct cfattach {
	size_t	ca_devsize;
	int	(*ca_match)(device_t, cfdata_t, void *);
	void	(*ca_attach)(device_t, device_t, void *);
	int	(*ca_detach)(device_t, int);
	int	ca_flags;
};

#define	DVF_DETACH_SHUTDOWN	1
#define	CFATTACH_DECL3_NEW(name, size, match, attach, detach, activate,	\
	    rescan, childdet, flags)					\
	extern const struct cfattach name##_ca;				\
	const struct cfattach name##_ca = {				\
		(size), (match), (attach), (detach), (flags)		\
	}
#define	CFATTACH_DECL_NEW(name, size, match, attach, detach, activate)	\
	CFATTACH_DECL3_NEW(name, size, match, attach, detach, activate,	\
	    NULL, NULL, 0)

#define	DETACH_FORCE	1

const char *
	device_xname(device_t);
int	device_unit(device_t);
void	*device_private(device_t);
void	*device_lookup_private(struct cfdriver *, int);
void	device_printf(device_t, const char *, ...) __printflike(2, 3);
void	aprint_normal_dev(device_t, const char *, ...) __printflike(2, 3);
void	aprint_verbose_dev(device_t, const char *, ...) __printflike(2, 3);
void	aprint_error_dev(device_t, const char *, ...) __printflike(2, 3);
void	config_pending_incr(device_t);
void	config_pending_decr(device_t);

#define	PMF_Q_NONE	((const pmf_qual_t *)NULL)
bool	pmf_device_register(device_t,
	    bool (*)(device_t, const pmf_qual_t *),
	    bool (*)(device_t, const pmf_qual_t *));
void	pmf_device_deregister(device_t);

/*
 * Device switch.
 */

struct uio;
struct knote;
struct tty;
struct buf;

#define	dev_type_open(n)	int n(dev_t, int, int, struct lwp *)
#define	dev_type_close(n)	int n(dev_t, int, int, struct lwp *)
#define	dev_type_read(n)	int n(dev_t, struct uio *, int)
#define	dev_type_write(n)	int n(dev_t, struct uio *, int)
#define	dev_type_ioctl(n)	int n(dev_t, u_long, void *, int, struct lwp *)
#define	dev_type_stop(n)	void n(struct tty *, int)
#define	dev_type_tty(n)		struct tty *n(dev_t)
#define	dev_type_poll(n)	int n(dev_t, int, struct lwp *)
#define	dev_type_mmap(n)	vaddr_t n(dev_t, int64_t, int)
#define	dev_type_strategy(n)	void n(struct buf *)
#define	dev_type_dump(n)	int n(dev_t, daddr_t, void *, size_t)
#define	dev_type_size(n)	int n(dev_t)
#define	dev_type_kqfilter(n)	int n(dev_t, struct knote *)
#define	dev_type_discard(n)	int n(dev_t, off_t, off_t)

#define	D_TTY		1
#define	D_DISK		2
#define	D_MPSAFE	4

struct bdevsw {
	dev_type_open((*d_open));
	dev_type_close((*d_close));
	dev_type_strategy((*d_strategy));
	dev_type_ioctl((*d_ioctl));
	dev_type_dump((*d_dump));
	dev_type_size((*d_psize));
	dev_type_discard((*d_discard));
	int	d_flag;
};
struct cdevsw {
	dev_type_open((*d_open));
	dev_type_close((*d_close));
	dev_type_read((*d_read));
	dev_type_write((*d_write));
	dev_type_ioctl((*d_ioctl));
	dev_type_stop((*d_stop));
	dev_type_tty((*d_tty));
	dev_type_poll((*d_poll));
	dev_type_mmap((*d_mmap));
	dev_type_kqfilter((*d_kqfilter));
	dev_type_discard((*d_discard));
	int	d_flag;
};
extern const struct cdevsw xencons_cdevsw;

dev_type_stop(nostop);
dev_type_tty(notty);
dev_type_poll(nopoll);
dev_type_mmap(nommap);
dev_type_kqfilter(nokqfilter);
dev_type_discard(nodiscard);
int	bdevsw_lookup_major(const struct bdevsw *);
int	cdevsw_lookup_major(const struct cdevsw *);

#define	FREAD	1
#define	FWRITE	2
enum vtype { VBLK = 3, VCHR = 4 };
void	vdevgone(int, int, int, enum vtype);

/*
 * Buffers and disks.
 */

#define	B_WRITE	0x00000000
#define	B_READ	0x00100000

struct buf {
	int		b_flags;
	int		b_error;
	int		b_bcount;
	int		b_resid;
	void		*b_data;
	dev_t		b_dev;
	daddr_t		b_blkno;
	daddr_t		b_rawblkno;

	/* The host's. */
	struct buf	*b_next;
	int		b_ended;	/* how often */
};
void	biodone(struct buf *);
int	biowait(struct buf *);
void	minphys(struct buf *);
int	physio(void (*)(struct buf *), struct buf *, dev_t, int,
	    void (*)(struct buf *), struct uio *);

struct bufq_state;
int	bufq_alloc(struct bufq_state **, const char *, int);
void	bufq_free(struct bufq_state *);

struct disklabel {
	struct partition {
		uint32_t	p_size;
		uint32_t	p_offset;
	}		d_partitions[MAXPARTITIONS];
};

struct dkdriver {
	void	(*d_strategy)(struct buf *);
	void	(*d_minphys)(struct buf *);
	int	(*d_open)(dev_t, int, int, struct lwp *);
	int	(*d_close)(dev_t, int, int, struct lwp *);
	int	(*d_diskstart)(device_t, struct buf *);
	int	(*d_dumpblocks)(device_t, void *, daddr_t, int);
	int	(*d_lastclose)(device_t);
};
struct disk_geom {
	int64_t		dg_secperunit;
	uint32_t	dg_secsize;
	uint32_t	dg_nsectors;
	uint32_t	dg_ntracks;
	uint32_t	dg_ncylinders;
};
struct disk {
	const char		*dk_name;
	const struct dkdriver	*dk_driver;
	kmutex_t		dk_openlock;
	u_int			dk_bopenmask;
	u_int			dk_copenmask;
	u_int			dk_openmask;
	struct disk_geom	dk_geom;
	struct disklabel	*dk_label;
	int			dk_blkshift;

	/* The host's. */
	bool			dk_listed;
	int			dk_told;	/* disk_set_info()s */
	int64_t			dk_searched;	/* sectors, for wedges */
};
#define	DKTYPE_ESDI	5
void	disk_init(struct disk *, const char *, const struct dkdriver *);
void	disk_destroy(struct disk *);
void	disk_attach(struct disk *);
void	disk_detach(struct disk *);
int	disk_begindetach(struct disk *, int (*)(device_t), device_t, int);
void	disk_set_info(device_t, struct disk *, const char *);
void	dkwedge_discover(struct disk *);
void	dkwedge_delall(struct disk *);

int	bounds_check_with_mediasize(struct buf *, int, uint64_t);
int	bounds_check_with_label(struct disk *, struct buf *, int);

struct dk_softc {
	device_t		sc_dev;
	uint32_t		sc_flags;
	struct disk		sc_dkdev;
	struct bufq_state	*sc_bufq;

	/* The host's. */
	kmutex_t		sc_iolock;
	struct buf		*sc_deferred;
	int			sc_busy;
	int			sc_attached;
};
#define	DKF_WLABEL	0x00020000
#define	DKF_LABELLING	0x00040000
#define	DK_ATTACHED(d)	(__atomic_load_n(&(d)->sc_attached, __ATOMIC_ACQUIRE))
void	dk_init(struct dk_softc *, device_t, int);
void	dk_attach(struct dk_softc *);
void	dk_detach(struct dk_softc *);
int	dk_open(struct dk_softc *, dev_t, int, int, struct lwp *);
int	dk_close(struct dk_softc *, dev_t, int, int, struct lwp *);
void	dk_strategy(struct dk_softc *, struct buf *);
void	dk_start(struct dk_softc *, struct buf *);
void	dk_done(struct dk_softc *, struct buf *);
int	dk_drain(struct dk_softc *);
int	dk_size(struct dk_softc *, dev_t);
int	dk_ioctl(struct dk_softc *, dev_t, u_long, void *, int, struct lwp *);
#if __NetBSD_Version__ >= 1000000000
int	dk_dump(struct dk_softc *, dev_t, daddr_t, void *, size_t, int);
#else
int	dk_dump(struct dk_softc *, dev_t, daddr_t, void *, size_t);
#endif

#define	DIOCGCACHE	0x40046474UL
#define	DIOCCACHESYNC	0x80046476UL
#define	DIOCGMEDIASIZE	0x40086484UL
#define	DIOCGSECTORSIZE	0x40046485UL
#if __NetBSD_Version__ >= 1000000000
struct disk_sectoralign {
	uint32_t	dsa_firstaligned;
	uint32_t	dsa_alignment;
};
#define	DIOCGSECTORALIGN 0x40086487UL
#endif
#define	DKCACHE_READ	1
#define	DKCACHE_WRITE	2

/*
 * sysctl.
 */

struct sysctllog;
struct sysctlnode;
#define	SYSCTLFN_ARGS							\
	void *oldp, size_t *oldlenp, const struct sysctlnode *rnode
#define	SYSCTLFN_CALL(node)	oldp, oldlenp, (node)

struct sysctlnode {
	const char	*sysctl_name;
	void		*sysctl_data;
	int		(*sysctl_func)(SYSCTLFN_ARGS);
};
#define	SYSCTL_DESCR(s)		(s)
#define	CTLFLAG_READONLY	0
#define	CTLTYPE_NODE		1
#define	CTLTYPE_QUAD		4
#define	CTL_EOL			(-1)
#define	CTL_CREATE		(-2)
#define	CTL_HW			6
int	sysctl_createv(struct sysctllog **, int, const struct sysctlnode **,
	    const struct sysctlnode **, int, int, const char *, const char *,
	    int (*)(SYSCTLFN_ARGS), uint64_t, void *, size_t, ...);
void	sysctl_teardown(struct sysctllog **);
int	sysctl_lookup(SYSCTLFN_ARGS);

/*
 * Terminals and the console.
 */

struct clist {
	int	c_cc;		/* bytes in it */
	char	*c_cf;		/* the first */

	/* The host's: a ring. */
	char	c_ring[1024];
};
int	ndqb(struct clist *, int);
void	ndflush(struct clist *, int);

struct termios {
	u_int	c_iflag, c_oflag, c_cflag, c_lflag;
	int	c_ispeed, c_ospeed;
};
struct linesw {
	int	(*l_open)(dev_t, struct tty *);
	int	(*l_close)(struct tty *, int);
	int	(*l_read)(struct tty *, struct uio *, int);
	int	(*l_write)(struct tty *, struct uio *, int);
	int	(*l_ioctl)(struct tty *, u_long, void *, int, struct lwp *);
	int	(*l_rint)(int, struct tty *);
	int	(*l_start)(struct tty *);
	int	(*l_poll)(struct tty *, int, struct lwp *);
};
struct tty {
	struct clist		t_outq;
	const struct linesw	*t_linesw;
	void			(*t_oproc)(struct tty *);
	int			(*t_param)(struct tty *, struct termios *);
	dev_t			t_dev;
	int			t_state;
	int			t_wopen;
	struct termios		t_termios;
#define	t_cflag		t_termios.c_cflag
#define	t_ispeed	t_termios.c_ispeed
#define	t_ospeed	t_termios.c_ospeed

	/* The host's: what has come in, and who waits for room. */
	kcondvar_t		t_outcv;
	char			t_input[4096];
	size_t			t_inputs;
};
#define	TS_BUSY		0x001
#define	TS_CARR_ON	0x002
#define	TS_ISOPEN	0x004
#define	TS_TIMEOUT	0x008
#define	TS_TTSTOP	0x010
#define	TTYDEF_IFLAG	0
#define	TTYDEF_OFLAG	0
#define	TTYDEF_CFLAG	0
#define	TTYDEF_LFLAG	0
#define	TTYDEF_SPEED	9600
extern kmutex_t tty_lock;
struct tty *tty_alloc(void);
void	tty_attach(struct tty *);
void	ttychars(struct tty *);
void	ttsetwater(struct tty *);
int	ttyclose(struct tty *);
bool	ttypull(struct tty *);
int	ttioctl(struct tty *, u_long, void *, int, struct lwp *);
dev_type_kqfilter(ttykqfilter);

#define	KAUTH_DEVICE_TTY_OPEN	1
int	kauth_authorize_device_tty(struct kauth_cred *, int, struct tty *);

struct consdev {
	int	(*cn_getc)(dev_t);
	void	(*cn_putc)(dev_t, int);
	void	(*cn_pollc)(dev_t, int);
	dev_t	cn_dev;
	int	cn_pri;
};
#define	CN_NORMAL	2
extern struct consdev *cn_tab;
struct cnm_state {
	int	cnm_seen;
};
void	cn_init_magic(struct cnm_state *);
void	cn_set_magic(const char *);
void	host_check_magic(dev_t, int, struct cnm_state *);
#define	cn_check_magic(dev, ch, state)	host_check_magic(dev, ch, &(state))

extern int db_max_line;

/*
 * Xen.
 */

typedef uint16_t	domid_t;
typedef uint32_t	grant_ref_t;

struct xencons_interface;
extern struct start_info {
	union {
		struct {
			unsigned long	mfn;
			uint32_t	evtchn;
		} domU;
	} console;
} xen_start_info;
extern volatile struct xencons_interface *xencons_interface;
bool	xendomain_is_dom0(void);
void	xenconscn_attach(void);

#define	VIRQ_CONSOLE	2
struct intrhand;
int	bind_virq_to_evtch(int);
int	HYPERVISOR_yield(void);
void	hypervisor_mask_event(unsigned int);
#if __NetBSD_Version__ >= 900000000
struct pic;
extern struct pic xen_pic;
#define	IST_LEVEL	2
struct intrhand *
	xen_intr_establish_xname(int, struct pic *, int, int, int,
	    int (*)(void *), void *, bool, const char *);
void	xen_intr_disestablish(struct intrhand *);
void	hypervisor_unmask_event(unsigned int);
#else
int	event_set_handler(int, int (*)(void *), void *, int, const char *);
int	event_remove_handler(int, int (*)(void *), void *);
void	hypervisor_enable_event(unsigned int);
#endif

void	xengnt_init(void);
bool	xengnt_suspend(void);
bool	xengnt_resume(void);
int	xengnt_grant_access(domid_t, paddr_t, int, grant_ref_t *);
void	xengnt_revoke_access(grant_ref_t);
int	xengnt_status(grant_ref_t);

struct xsd_sockmsg;
struct xenbus_watch {
	char	*node;
#if __NetBSD_Version__ >= 1000000000
	size_t	node_sz;
#endif
	void	(*xbw_callback)(struct xenbus_watch *, const char **,
		    unsigned int);
};
struct xenbus_device {
	const char	*xbusd_path;
};
struct xenbusdev_attach_args {
	const char		*xa_type;
	int			xa_id;
	struct xenbus_device	*xa_xbusd;
};
struct xencons_attach_args {
	const char	*xa_device;
};
int	xenbus_dev_request_and_reply(struct xsd_sockmsg *, void **);
#if __NetBSD_Version__ >= 1000000000
void	xenbus_dev_reply_free(struct xsd_sockmsg *, void *);
#endif
int	register_xenbus_watch(struct xenbus_watch *);
void	unregister_xenbus_watch(struct xenbus_watch *);

#endif /* _KERNEL_H_ */
