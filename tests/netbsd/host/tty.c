/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel as the glue's console sees it: tty(4) with a line
 * discipline that changes nothing, and cons(9).
 */

#include <kernel.h>

#include "port.h"

kmutex_t tty_lock;
struct consdev *cn_tab;
struct start_info xen_start_info;

static struct tty *console;		/* the one that was allocated */
static const char *magic;
static int magics;			/* how often it was seen */

/*
 * Queues of bytes.
 */

/* Returns how many bytes lie in a row. */
int
ndqb(struct clist *cl, int flag)
{
	int end = cl->c_ring + sizeof(cl->c_ring) - cl->c_cf;

	KASSERT(flag == 0);
	return cl->c_cc < end ? cl->c_cc : end;
}

void
ndflush(struct clist *cl, int count)
{

	KASSERT(count <= cl->c_cc);
	cl->c_cc -= count;
	cl->c_cf = cl->c_ring + (cl->c_cf - cl->c_ring + count) %
	    sizeof(cl->c_ring);
}

static void
put(struct clist *cl, char c)
{

	cl->c_ring[(cl->c_cf - cl->c_ring + cl->c_cc++) %
	    sizeof(cl->c_ring)] = c;
}

/*
 * The line discipline.
 */

static int
line_open(dev_t dev, struct tty *tp)
{

	(void)dev;
	mutex_spin_enter(&tty_lock);
	SET(tp->t_state, TS_ISOPEN);
	mutex_spin_exit(&tty_lock);
	return 0;
}

static int
line_close(struct tty *tp, int flag)
{

	(void)flag;
	mutex_spin_enter(&tty_lock);
	while (tp->t_outq.c_cc != 0)
		cv_wait(&tp->t_outcv, &tty_lock);
	mutex_spin_exit(&tty_lock);
	return 0;
}

static int
line_rint(int c, struct tty *tp)
{

	mutex_spin_enter(&tty_lock);
	if (tp->t_inputs < sizeof(tp->t_input))
		tp->t_input[tp->t_inputs++] = c;
	mutex_spin_exit(&tty_lock);
	return 0;
}

static int
line_start(struct tty *tp)
{

	KASSERT(mutex_owned(&tty_lock));
	(*tp->t_oproc)(tp);
	return 0;
}

static int
line_none(struct tty *tp, struct uio *uio, int flag)
{

	(void)tp, (void)uio, (void)flag;
	return EIO;
}

static int
line_ioctl(struct tty *tp, u_long cmd, void *data, int flag, struct lwp *l)
{

	(void)tp, (void)cmd, (void)data, (void)flag, (void)l;
	return EPASSTHROUGH;
}

static int
line_poll(struct tty *tp, int events, struct lwp *l)
{

	(void)tp, (void)l;
	return events;
}

static const struct linesw line = {
	line_open, line_close, line_none, line_none, line_ioctl, line_rint,
	line_start, line_poll
};

struct tty *
tty_alloc(void)
{

	console = kmem_zalloc(sizeof(*console), KM_SLEEP);
	console->t_outq.c_cf = console->t_outq.c_ring;
	console->t_linesw = &line;
	cv_init(&console->t_outcv, "ttyout");
	return console;
}

void
tty_attach(struct tty *tp)
{

	(void)tp;
}

void
ttychars(struct tty *tp)
{

	(void)tp;
}

void
ttsetwater(struct tty *tp)
{

	(void)tp;
}

int
ttyclose(struct tty *tp)
{

	mutex_spin_enter(&tty_lock);
	tp->t_state = 0;
	mutex_spin_exit(&tty_lock);
	return 0;
}

/* There is room again for whoever waits to write. */
bool
ttypull(struct tty *tp)
{

	KASSERT(mutex_owned(&tty_lock));
	cv_broadcast(&tp->t_outcv);
	return true;
}

int
ttioctl(struct tty *tp, u_long cmd, void *data, int flag, struct lwp *l)
{

	(void)tp, (void)cmd, (void)data, (void)flag, (void)l;
	return ENOTTY;
}

int
ttykqfilter(dev_t dev, struct knote *kn)
{

	return nokqfilter(dev, kn);
}

int
kauth_authorize_device_tty(struct kauth_cred *cred, int action,
    struct tty *tp)
{

	(void)cred, (void)action, (void)tp;
	return 0;
}

/*
 * The console.
 */

void
cn_init_magic(struct cnm_state *state)
{

	state->cnm_seen = 0;
}

void
cn_set_magic(const char *what)
{

	magic = what;
}

void
host_check_magic(dev_t dev, int c, struct cnm_state *state)
{

	(void)dev;
	state->cnm_seen = c == magic[state->cnm_seen] ? state->cnm_seen + 1 :
	    0;
	if (magic[state->cnm_seen] == '\0') {
		state->cnm_seen = 0;
		__atomic_add_fetch(&magics, 1, __ATOMIC_SEQ_CST);
	}
}

/*
 * For the Rust side.
 */

/* The kernel's first steps: there is a page with rings and nothing else. */
void
host_cons_early(void *page, uint32_t port)
{

	mutex_init(&tty_lock, MUTEX_DEFAULT, IPL_VM);
	xencons_interface = page;
	xen_start_info.console.domU.evtchn = port;
	cold = 1;
	xenconscn_attach();
}

void
host_cons_attach(void)
{

	host_config_found("xencons", 0, NULL);
	cold = 0;
}

void
host_cons_put(const char *text, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		(*cn_tab->cn_putc)(cn_tab->cn_dev, (unsigned char)text[i]);
}

int
host_cons_get(void)
{

	return (*cn_tab->cn_getc)(cn_tab->cn_dev);
}

void
host_cons_poll(int on)
{

	(*cn_tab->cn_pollc)(cn_tab->cn_dev, on);
}

int
host_magics(void)
{

	return __atomic_load_n(&magics, __ATOMIC_SEQ_CST);
}

int
host_tty_open(void)
{
	struct lwp l = { NULL };

	return (*xencons_cdevsw.d_open)(cn_tab->cn_dev, FREAD | FWRITE, VCHR,
	    &l);
}

int
host_tty_close(void)
{

	return (*xencons_cdevsw.d_close)(cn_tab->cn_dev, 0, VCHR, NULL);
}

/* Writes as a process does: what has no room is waited for. */
void
host_tty_write(const char *text, size_t len)
{
	struct clist *cl = &console->t_outq;
	size_t i;

	mutex_spin_enter(&tty_lock);
	for (i = 0; i < len; i++) {
		while (cl->c_cc == (int)sizeof(cl->c_ring)) {
			(*console->t_oproc)(console);
			if (cl->c_cc == (int)sizeof(cl->c_ring))
				cv_wait(&console->t_outcv, &tty_lock);
		}
		put(cl, text[i]);
	}
	(*console->t_oproc)(console);
	mutex_spin_exit(&tty_lock);
}

/* Returns what has come in so far, of which there may be some more. */
size_t
host_tty_input(char *text, size_t len)
{
	size_t count;

	mutex_spin_enter(&tty_lock);
	count = console->t_inputs < len ? console->t_inputs : len;
	memcpy(text, console->t_input, count);
	console->t_inputs = 0;
	mutex_spin_exit(&tty_lock);
	return count;
}
