/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the played kernel is made of on the host: locks, threads and time, by
 * pthreads. Only this and memory.c see the host's headers.
 *
 * It holds callers to the rules of a kernel: nobody sleeps at a raised level,
 * in an interrupt or below a spin lock; each lock is left by its owner.
 */

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "port.h"

/* As kernel.h has them, which can't be included beside the host's headers. */
#define	IPL_NONE	0
#define	IPL_SOFTCLOCK	1
#define	NETBSD_EAGAIN	35

struct kmutex {
	struct port_mutex	*mtx_port;
};
struct kcondvar {
	struct port_cv		*cv_port;
};
struct cpu_info {
	int		ci_ilevel;
	unsigned int	ci_index;
};
struct lwp {
	void	*l_cred;
};

struct port_mutex {
	pthread_mutex_t	lock;
	int		ipl;
	const void	*owner;
};
struct port_cv {
	pthread_cond_t	cond;
	int		waiters;
};
struct port_thread {
	struct lwp	lwp;	/* first */
	pthread_t	thread;
	void		(*func)(void *);
	void		*arg;
};

/*
 * Each thread is a CPU of its own, as far as interrupt levels go; which CPU it
 * says that it is is another matter.
 */
static _Thread_local struct {
	struct cpu_info	info;
	int		spins;		/* spin mutexes held */
	int		before;		/* level before the first of them */
	bool		intr;
} cpu;

const char *volatile panicstr;
struct cpu_info *paniccpu;
int hz = 100;
int cold;
int ncpu = 4;

void
port_vsay(const char *fmt, va_list ap)
{
	char line[512];
	int len;

	len = vsnprintf(line, sizeof(line), fmt, ap);
	if (len > (int)sizeof(line) - 1)
		len = sizeof(line) - 1;
	host_say(line, len);
}

void
panic(const char *fmt, ...)
{
	va_list ap;

	panicstr = fmt;
	fprintf(stderr, "panic: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	abort();
}

/*
 * Interrupt levels.
 */

struct cpu_info *
curcpu(void)
{

	return &cpu.info;
}

unsigned int
cpu_index(const struct cpu_info *ci)
{

	return ci->ci_index;
}

/* The thread goes to another CPU. */
void
port_set_cpu(unsigned int index)
{

	cpu.info.ci_index = index;
}

/* A thread stays on its CPU. */
int
curlwp_bind(void)
{

	return 0;
}

void
curlwp_bindx(int bound)
{
}

void
kpreempt_disable(void)
{
}

void
kpreempt_enable(void)
{
}

bool
cpu_intr_p(void)
{

	return cpu.intr;
}

bool
cpu_softintr_p(void)
{

	return false;
}

int
port_splraise(int ipl)
{
	int s = cpu.info.ci_ilevel;

	if (ipl > s)
		cpu.info.ci_ilevel = ipl;
	return s;
}

void
splx(int s)
{

	if (s > cpu.info.ci_ilevel)
		panic("splx raises the level");
	cpu.info.ci_ilevel = s;
}

/* Runs a handler as an interrupt. */
int
port_interrupt(int ipl, int (*func)(void *), void *arg)
{
	int done;

	cpu.intr = true;
	cpu.info.ci_ilevel = ipl;
	done = (*func)(arg);
	if (cpu.info.ci_ilevel != ipl || cpu.spins != 0)
		panic("a handler returned at another level");
	cpu.info.ci_ilevel = IPL_NONE;
	cpu.intr = false;
	return done;
}

/* For whatever may have to wait. */
void
port_may_sleep(const char *what)
{

	if (cpu.intr || cpu.spins != 0 || cpu.info.ci_ilevel != IPL_NONE)
		panic("%s may sleep, but its caller may not", what);
}

/*
 * Mutexes and condition variables.
 */

static bool
adaptive(const struct port_mutex *m)
{

	return m->ipl <= IPL_SOFTCLOCK;
}

/* What becomes of the level around a spin mutex. */
static void
raise_for(const struct port_mutex *m)
{
	int s;

	if (adaptive(m))
		return;
	s = port_splraise(m->ipl);
	if (cpu.spins++ == 0)
		cpu.before = s;
}

static void
lower_after(const struct port_mutex *m)
{

	if (!adaptive(m) && --cpu.spins == 0)
		cpu.info.ci_ilevel = cpu.before;
}

void
mutex_init(struct kmutex *mtx, int type, int ipl)
{
	struct port_mutex *m = calloc(1, sizeof(*m));

	(void)type;
	pthread_mutex_init(&m->lock, NULL);
	m->ipl = ipl;
	mtx->mtx_port = m;
}

void
mutex_destroy(struct kmutex *mtx)
{
	struct port_mutex *m = mtx->mtx_port;

	if (pthread_mutex_destroy(&m->lock) != 0)
		panic("a mutex is destroyed that somebody holds");
	mtx->mtx_port = NULL;
	free(m);
}

int
mutex_owned(const struct kmutex *mtx)
{

	return __atomic_load_n(&mtx->mtx_port->owner, __ATOMIC_RELAXED) ==
	    &cpu;
}

void
mutex_enter(struct kmutex *mtx)
{
	struct port_mutex *m = mtx->mtx_port;

	if (mutex_owned(mtx))
		panic("a mutex is entered twice");
	if (adaptive(m))
		port_may_sleep("mutex_enter");
	raise_for(m);
	pthread_mutex_lock(&m->lock);
	__atomic_store_n(&m->owner, &cpu, __ATOMIC_RELAXED);
}

int
mutex_tryenter(struct kmutex *mtx)
{
	struct port_mutex *m = mtx->mtx_port;

	if (!adaptive(m))
		panic("mutex_tryenter for a spin mutex is not played");
	if (pthread_mutex_trylock(&m->lock) != 0)
		return 0;
	__atomic_store_n(&m->owner, &cpu, __ATOMIC_RELAXED);
	return 1;
}

void
mutex_exit(struct kmutex *mtx)
{
	struct port_mutex *m = mtx->mtx_port;

	if (!mutex_owned(mtx))
		panic("a mutex is left that is another's");
	__atomic_store_n(&m->owner, NULL, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&m->lock);
	lower_after(m);
}

void
mutex_spin_enter(struct kmutex *mtx)
{

	if (adaptive(mtx->mtx_port))
		panic("mutex_spin_enter for an adaptive mutex");
	mutex_enter(mtx);
}

void
mutex_spin_exit(struct kmutex *mtx)
{

	mutex_exit(mtx);
}

void
cv_init(struct kcondvar *kcv, const char *name)
{
	pthread_condattr_t attr;
	struct port_cv *cv = calloc(1, sizeof(*cv));

	(void)name;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cv->cond, &attr);
	kcv->cv_port = cv;
}

void
cv_destroy(struct kcondvar *kcv)
{

	if (kcv->cv_port->waiters != 0)
		panic("a condition variable is destroyed that has waiters");
	pthread_cond_destroy(&kcv->cv_port->cond);
	free(kcv->cv_port);
	kcv->cv_port = NULL;
}

int
cv_timedwait(struct kcondvar *kcv, struct kmutex *mtx, int ticks)
{
	struct port_cv *cv = kcv->cv_port;
	struct port_mutex *m = mtx->mtx_port;
	struct timespec until;
	int error = 0;

	if (!mutex_owned(mtx))
		panic("cv_wait without its mutex");
	__atomic_store_n(&m->owner, NULL, __ATOMIC_RELAXED);
	lower_after(m);
	port_may_sleep("cv_wait");
	cv->waiters++;
	if (ticks == 0)
		pthread_cond_wait(&cv->cond, &m->lock);
	else {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += ticks % hz * (1000000000 / hz);
		until.tv_sec += ticks / hz + until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		error = pthread_cond_timedwait(&cv->cond, &m->lock, &until);
	}
	cv->waiters--;
	raise_for(m);
	__atomic_store_n(&m->owner, &cpu, __ATOMIC_RELAXED);
	return error == ETIMEDOUT ? NETBSD_EAGAIN : 0;
}

void
cv_wait(struct kcondvar *kcv, struct kmutex *mtx)
{

	(void)cv_timedwait(kcv, mtx, 0);
}

void
cv_signal(struct kcondvar *kcv)
{

	pthread_cond_signal(&kcv->cv_port->cond);
}

void
cv_broadcast(struct kcondvar *kcv)
{

	pthread_cond_broadcast(&kcv->cv_port->cond);
}

/*
 * Threads and time.
 */

/* How many more threads can be made; then one can't. Below 0: no end. */
int port_threads_left = -1;

static bool
thread_fails(void)
{

	return __atomic_load_n(&port_threads_left, __ATOMIC_SEQ_CST) >= 0 &&
	    __atomic_fetch_sub(&port_threads_left, 1, __ATOMIC_SEQ_CST) == 0;
}

static void *
thread_main(void *arg)
{
	struct port_thread *t = arg;

	(*t->func)(t->arg);
	return NULL;
}

int
kthread_create(int pri, int flags, struct cpu_info *ci, void (*func)(void *),
    void *arg, struct lwp **lp, const char *fmt, ...)
{
	struct port_thread *t;

	(void)pri, (void)flags, (void)ci, (void)fmt;
	port_may_sleep("kthread_create");
	if (thread_fails())
		return NETBSD_EAGAIN;
	t = calloc(1, sizeof(*t));
	t->func = func;
	t->arg = arg;
	/* Who the thread is stands there before it runs. */
	*lp = &t->lwp;
	if (pthread_create(&t->thread, NULL, thread_main, t) != 0)
		panic("the host has no thread");
	return 0;
}

void
kthread_exit(int code)
{

	(void)code;
	if (cpu.spins != 0 || cpu.info.ci_ilevel != IPL_NONE)
		panic("a thread ends at a raised level");
	pthread_exit(NULL);
}

int
kthread_join(struct lwp *l)
{
	struct port_thread *t = (struct port_thread *)l;

	port_may_sleep("kthread_join");
	if (pthread_join(t->thread, NULL) != 0)
		panic("kthread_join");
	free(t);
	return 0;
}

void
port_delay(unsigned int us)
{
	struct timespec ts = { us / 1000000, us % 1000000 * 1000 };

	nanosleep(&ts, NULL);
}

int
kpause(const char *name, bool intr, int ticks, struct kmutex *mtx)
{

	(void)name, (void)intr, (void)mtx;
	port_may_sleep("kpause");
	port_delay(ticks * (1000000 / hz));
	return NETBSD_EAGAIN;
}

void
nanouptime(struct timespec *ts)
{

	clock_gettime(CLOCK_MONOTONIC, ts);
}

/* What tests add to the clock, in seconds. */
int port_skipped;

time_t
port_uptime(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + __atomic_load_n(&port_skipped, __ATOMIC_RELAXED);
}

/* All intervals are whole seconds. */
int
ratecheck(struct timeval *last, const struct timeval *interval)
{
	const time_t now = port_uptime();

	if (last->tv_sec != 0 && now - last->tv_sec < interval->tv_sec)
		return 0;
	last->tv_sec = now;
	return 1;
}

void *
atomic_swap_ptr(volatile void *p, void *value)
{

	return __atomic_exchange_n((void *volatile *)p, value,
	    __ATOMIC_SEQ_CST);
}

void *
atomic_cas_ptr(volatile void *p, void *expected, void *value)
{

	__atomic_compare_exchange_n((void *volatile *)p, &expected, value,
	    false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return expected;
}

int
HYPERVISOR_yield(void)
{

	return sched_yield();
}

unsigned int
atomic_swap_uint(volatile unsigned int *p, unsigned int value)
{

	return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);
}

unsigned int
atomic_cas_uint(volatile unsigned int *p, unsigned int old, unsigned int new)
{

	(void)__atomic_compare_exchange_n(p, &old, new, false,
	    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return old;
}
