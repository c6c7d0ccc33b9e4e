/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * xencons(4): the console that the domain was started with. The driver is in
 * Rust (xenpv.h); this is its tty(4) side, in place of
 * sys/arch/xen/xen/xencons.c.
 *
 * There is one console. It is written to from the first line of the kernel
 * on, and needs nothing for that. A terminal that nobody reads delays the
 * kernel by a second once, and then loses what has no room.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include "opt_xen.h"
#include "opt_ddb.h"

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/conf.h>
#include <sys/device.h>
#include <sys/errno.h>
#include <sys/ioctl.h>
#include <sys/kauth.h>
#include <sys/kernel.h>
#include <sys/lwp.h>
#include <sys/mutex.h>
#include <sys/proc.h>
#include <sys/tty.h>

#include <uvm/uvm_extern.h>

#include <xen/intr.h>
#include <xen/xen.h>
#include <xen/hypervisor.h>
#include <xen/evtchn.h>

#include <dev/cons.h>

#ifdef DDB
#include <ddb/db_output.h>	/* db_max_line */
#endif

#include "xenpv_var.h"

/* How long output waits for a terminal that doesn't read, in microseconds. */
#define	XENCONS_PATIENCE	1000000
#define	XENCONS_LOOK		100

struct xencons_softc {
	device_t	sc_dev;
	struct tty	*sc_tty;
	struct intrhand	*sc_ih;
	unsigned int	sc_port;
	struct xenpv_counters sc_counters;
};

/* Where locore and pmap have put the page of the rings. */
volatile struct xencons_interface *xencons_interface;

extern struct cpu_info *paniccpu;	/* subr_prf.c's */

static bool	xencons_isconsole;
static bool	xencons_polling;	/* the debugger has it */
static bool	xencons_stalled;	/* nobody reads: don't wait again */
static kmutex_t	xencons_lock;		/* IPL_HIGH; the library's console */
static struct cnm_state xencons_cnm_state;

static int	xencons_match(device_t, cfdata_t, void *);
static void	xencons_attach(device_t, device_t, void *);
static bool	xencons_suspend(device_t, const pmf_qual_t *);
static bool	xencons_resume(device_t, const pmf_qual_t *);
static int	xencons_intr(void *);
static void	xencons_start(struct tty *);
static int	xencons_param(struct tty *, struct termios *);
static void	xencons_fetch(void *, void *);

static int	xenconscn_getc(dev_t);
static void	xenconscn_putc(dev_t, int);
static void	xenconscn_pollc(dev_t, int);

CFATTACH_DECL_NEW(xencons, sizeof(struct xencons_softc),
    xencons_match, xencons_attach, NULL, NULL);

extern struct cfdriver xencons_cd;

static dev_type_open(xencons_open);
static dev_type_close(xencons_close);
static dev_type_read(xencons_read);
static dev_type_write(xencons_write);
static dev_type_ioctl(xencons_ioctl);
static dev_type_stop(xencons_stop);
static dev_type_tty(xencons_tty);
static dev_type_poll(xencons_poll);

const struct cdevsw xencons_cdevsw = {
	.d_open = xencons_open,
	.d_close = xencons_close,
	.d_read = xencons_read,
	.d_write = xencons_write,
	.d_ioctl = xencons_ioctl,
	.d_stop = xencons_stop,
	.d_tty = xencons_tty,
	.d_poll = xencons_poll,
	.d_mmap = nommap,
	.d_kqfilter = ttykqfilter,
	.d_discard = nodiscard,
	.d_flag = D_TTY
};

static const struct xenpv_counter xencons_counters[] = {
#define	COUNTER(f, about) \
	{ #f, about, offsetof(struct xenpv_cons_counters, f) }
	COUNTER(written, "Bytes written"),
	COUNTER(read, "Bytes read"),
	COUNTER(notifications, "Events sent to the back end"),
#undef COUNTER
};
CTASSERT(sizeof(struct xenpv_cons_counters) <= XENPV_COUNTERS_MAX);

static struct consdev xencons_consdev = {
	.cn_getc = xenconscn_getc,
	.cn_putc = xenconscn_putc,
	.cn_pollc = xenconscn_pollc,
	.cn_dev = NODEV,
	.cn_pri = CN_NORMAL
};

/*
 * The kernel's own console.
 */

/* Takes the console where it is now: at boot, and after a suspend. */
static void
xencons_take(void)
{

	if (xendomain_is_dom0())
		xenpv_cons_init(NULL, 0);
	else
		xenpv_cons_init(__UNVOLATILE(xencons_interface),
		    xen_start_info.console.domU.evtchn);
}

void
xenconscn_attach(void)
{

	mutex_init(&xencons_lock, MUTEX_DEFAULT, IPL_HIGH);
	xencons_take();
	cn_tab = &xencons_consdev;
	cn_init_magic(&xencons_cnm_state);
	cn_set_magic("+++++");
	xencons_isconsole = true;
}

/*
 * Tells whether nothing can be waited for, nor any lock be trusted. A panic
 * speaks before it says that it is one, perhaps from inside the lock.
 */
static bool
xencons_polled(void)
{

	return xencons_polling || panicstr != NULL || paniccpu == curcpu();
}

static void
xenconscn_putc(dev_t dev, int c)
{
	char ch = c;
	unsigned int waited = 0;
	size_t count;

	for (;;) {
		if (xencons_polled())
			count = xenpv_cons_poll_write(&ch, 1);
		else {
			mutex_enter(&xencons_lock);
			count = xenpv_cons_write(&ch, 1);
			mutex_exit(&xencons_lock);
		}
		if (count != 0) {
			xencons_stalled = false;
			return;
		}
		if (xencons_stalled || waited >= XENCONS_PATIENCE) {
			xencons_stalled = true;
			return;
		}
		/* Early, DELAY() is no delay. */
		(void)HYPERVISOR_yield();
		DELAY(XENCONS_LOOK);
		waited += XENCONS_LOOK;
	}
}

static int
xenconscn_getc(dev_t dev)
{
	char ch;
	size_t count;

	for (;;) {
		if (xencons_polled())
			count = xenpv_cons_poll_read(&ch, 1);
		else {
			mutex_enter(&xencons_lock);
			count = xenpv_cons_read(&ch, 1);
			mutex_exit(&xencons_lock);
		}
		if (count != 0)
			break;
		DELAY(XENCONS_LOOK);
	}
	cn_check_magic(dev, ch, xencons_cnm_state);
	return (unsigned char)ch;
}

static void
xenconscn_pollc(dev_t dev, int on)
{

	if (on) {
		xencons_polling = true;
		return;
	}
	if (!xencons_polling)
		return;
	/*
	 * Whoever was interrupted inside the lock goes on with what it knew:
	 * so this is done without, and before anybody else goes on.
	 */
	xenpv_cons_resync();
	xencons_polling = false;
}

/*
 * Autoconfiguration.
 */

static int
xencons_match(device_t parent, cfdata_t cf, void *aux)
{
	struct xencons_attach_args *xa = aux;

	return strcmp(xa->xa_device, "xencons") == 0;
}

static void
xencons_attach(device_t parent, device_t self, void *aux)
{
	struct xencons_softc *sc = device_private(self);

	aprint_naive("\n");
	aprint_normal(": Xen console\n");
	xenpv_check_abi();

	sc->sc_dev = self;
	sc->sc_tty = tty_alloc();
	tty_attach(sc->sc_tty);
	sc->sc_tty->t_oproc = xencons_start;
	sc->sc_tty->t_param = xencons_param;

	if (xencons_isconsole) {
		cn_tab->cn_dev = makedev(cdevsw_lookup_major(&xencons_cdevsw),
		    device_unit(self));
		sc->sc_tty->t_dev = cn_tab->cn_dev;
		aprint_verbose_dev(self, "console major %llu, unit %d\n",
		    (unsigned long long)major(cn_tab->cn_dev),
		    device_unit(self));
#ifdef DDB
		db_max_line = 0x7fffffff;	/* no pager */
#endif
		sc->sc_counters.xc_list = xencons_counters;
		sc->sc_counters.xc_count = __arraycount(xencons_counters);
		sc->sc_counters.xc_fetch = xencons_fetch;
		xenpv_counters_attach(&sc->sc_counters, self);
		xencons_resume(self, PMF_Q_NONE);
	}

	if (!pmf_device_register(self, xencons_suspend, xencons_resume))
		aprint_error_dev(self, "no power handler\n");
}

static bool
xencons_suspend(device_t self, const pmf_qual_t *qual)
{
	struct xencons_softc *sc = device_private(self);

	/* dom0's is the hypervisor's, which stays. */
	if (xendomain_is_dom0() || sc->sc_ih == NULL)
		return true;
	xenpv_intr_disestablish(sc->sc_ih, sc->sc_port, xencons_intr, sc);
	sc->sc_ih = NULL;
	return true;
}

static bool
xencons_resume(device_t self, const pmf_qual_t *qual)
{
	struct xencons_softc *sc = device_private(self);

	if (sc->sc_ih != NULL)
		return true;
	if (xendomain_is_dom0())
		sc->sc_port = bind_virq_to_evtch(VIRQ_CONSOLE);
	else {
		sc->sc_port = xen_start_info.console.domU.evtchn;
		if (!cold) {
			mutex_enter(&xencons_lock);
			xencons_take();
			mutex_exit(&xencons_lock);
		}
	}
	/* Line disciplines are changed with the kernel lock held. */
	sc->sc_ih = xenpv_intr_establish(sc->sc_port, IPL_TTY, xencons_intr,
	    sc, false, device_xname(self));
	if (sc->sc_ih == NULL) {
		aprint_error_dev(self, "can't establish event channel %u\n",
		    sc->sc_port);
		return false;
	}
	aprint_verbose_dev(self, "using event channel %u\n", sc->sc_port);
	return true;
}

/*
 * Input, and room for output.
 */

static int
xencons_intr(void *arg)
{
	struct xencons_softc *sc = arg;
	struct tty *tp = sc->sc_tty;
	char buf[64];
	size_t count, i;

	if (xencons_polled())
		return 1;
	do {
		mutex_enter(&xencons_lock);
		count = xenpv_cons_read(buf, sizeof(buf));
		mutex_exit(&xencons_lock);
		for (i = 0; i < count; i++) {
			cn_check_magic(tp->t_dev, buf[i], xencons_cnm_state);
			(*tp->t_linesw->l_rint)((unsigned char)buf[i], tp);
		}
	} while (count == sizeof(buf));

	mutex_spin_enter(&tty_lock);
	if ((tp->t_state & (TS_ISOPEN | TS_BUSY)) == TS_ISOPEN &&
	    tp->t_outq.c_cc != 0)
		(*tp->t_linesw->l_start)(tp);
	mutex_spin_exit(&tty_lock);
	return 1;
}

/* With the tty's lock held. */
static void
xencons_start(struct tty *tp)
{
	struct clist *cl = &tp->t_outq;
	size_t count;
	int some;

	if ((tp->t_state & (TS_TIMEOUT | TS_BUSY | TS_TTSTOP)) != 0)
		return;
	while ((some = ndqb(cl, 0)) > 0) {
		mutex_enter(&xencons_lock);
		/* Not into what another CPU's panic or debugger writes. */
		count = xencons_polled() ? 0 :
		    xenpv_cons_write(cl->c_cf, some);
		mutex_exit(&xencons_lock);
		if (count == 0)
			break;		/* the interrupt tells of room */
		ndflush(cl, count);
	}
	ttypull(tp);
}

static void
xencons_stop(struct tty *tp, int flag)
{
}

static int
xencons_param(struct tty *tp, struct termios *t)
{

	tp->t_ispeed = t->c_ispeed;
	tp->t_ospeed = t->c_ospeed;
	tp->t_cflag = t->c_cflag;
	return 0;
}

static void
xencons_fetch(void *arg, void *to)
{

	mutex_enter(&xencons_lock);
	xenpv_cons_counters(to);
	mutex_exit(&xencons_lock);
}

/*
 * Device switch.
 */

static struct tty *
xencons_tty(dev_t dev)
{
	struct xencons_softc *sc =
	    device_lookup_private(&xencons_cd, minor(dev));

	return sc != NULL ? sc->sc_tty : NULL;
}

/* What a terminal is like before anybody says otherwise. */
static void
xencons_defaults(struct tty *tp, dev_t dev)
{
	struct termios t = tp->t_termios;

	t.c_iflag = TTYDEF_IFLAG;
	t.c_oflag = TTYDEF_OFLAG;
	t.c_cflag = TTYDEF_CFLAG;
	t.c_lflag = TTYDEF_LFLAG;
	t.c_ispeed = t.c_ospeed = TTYDEF_SPEED;
	tp->t_dev = dev;
	tp->t_termios = t;
	ttychars(tp);
	ttsetwater(tp);
}

static int
xencons_open(dev_t dev, int flag, int mode, struct lwp *l)
{
	struct tty *tp = xencons_tty(dev);
	int error;

	/* Where the console is another, nobody has taken this one. */
	if (tp == NULL || !xencons_isconsole)
		return ENXIO;
	error = kauth_authorize_device_tty(l->l_cred, KAUTH_DEVICE_TTY_OPEN,
	    tp);
	if (error != 0)
		return EBUSY;
	if (tp->t_wopen == 0 && (tp->t_state & TS_ISOPEN) == 0)
		xencons_defaults(tp, dev);
	SET(tp->t_state, TS_CARR_ON);
	return (*tp->t_linesw->l_open)(dev, tp);
}

static int
xencons_close(dev_t dev, int flag, int mode, struct lwp *l)
{
	struct tty *tp = xencons_tty(dev);

	if (tp == NULL)
		return 0;
	(*tp->t_linesw->l_close)(tp, flag);
	ttyclose(tp);
	return 0;
}

static int
xencons_read(dev_t dev, struct uio *uio, int flag)
{
	struct tty *tp = xencons_tty(dev);

	return (*tp->t_linesw->l_read)(tp, uio, flag);
}

static int
xencons_write(dev_t dev, struct uio *uio, int flag)
{
	struct tty *tp = xencons_tty(dev);

	return (*tp->t_linesw->l_write)(tp, uio, flag);
}

static int
xencons_poll(dev_t dev, int events, struct lwp *l)
{
	struct tty *tp = xencons_tty(dev);

	return (*tp->t_linesw->l_poll)(tp, events, l);
}

static int
xencons_ioctl(dev_t dev, u_long cmd, void *data, int flag, struct lwp *l)
{
	struct tty *tp = xencons_tty(dev);
	int error;

	error = (*tp->t_linesw->l_ioctl)(tp, cmd, data, flag, l);
	if (error != EPASSTHROUGH)
		return error;
	return ttioctl(tp, cmd, data, flag, l);
}
