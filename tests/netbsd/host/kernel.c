/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel as a device sees it: log, autoconf(9), once(9), spl(9),
 * sysctl(9). It does what the glue may rely on, and holds it to what the kernel
 * relies on: nothing is busy that goes.
 */

#include <kernel.h>

#include "port.h"

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
	struct device		*units[HOST_UNITS];
} drivers[2];

static kmutex_t kernel_lock;		/* what follows */
static int pending;			/* config_pending_incr()s */

#define	SYSCTLS	32
struct sysctllog {
	struct sysctlnode	nodes[SYSCTLS];
	int			count;
};
static kmutex_t sysctl_lock;		/* it, and the nodes of all */
static struct sysctllog *sysctls;	/* the last disk's */

void
host_boot(void)
{

	mutex_init(&kernel_lock, MUTEX_DEFAULT, IPL_NONE);
	mutex_init(&sysctl_lock, MUTEX_DEFAULT, IPL_NONE);
	port_nodes_init();
	port_disks_init();
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

	if (size < 9)
		panic("format_bytes without room");
	return snprintf(buf, size, "%" PRIu64 " KB", bytes / 1024);
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
		if (drivers[i].cd == cd && unit >= 0 && unit < HOST_UNITS)
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
		KASSERT(unit < HOST_UNITS - 1);
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
	int error;

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
	port_nodes_revive(dev->unit);
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

	mutex_enter(&kernel_lock);
	dev->pending++;
	pending++;
	mutex_exit(&kernel_lock);
}

void
config_pending_decr(device_t dev)
{

	mutex_enter(&kernel_lock);
	KASSERT(dev->pending > 0);
	dev->pending--;
	pending--;
	mutex_exit(&kernel_lock);
}

/* Returns how many devices keep the kernel from looking for its root. */
int
host_pending(void)
{
	int now;

	mutex_enter(&kernel_lock);
	now = pending;
	mutex_exit(&kernel_lock);
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
	mutex_enter(&kernel_lock);
	if (o->o_done == 0) {
		(*init)();
		o->o_done = 1;
	}
	mutex_exit(&kernel_lock);
	return 0;
}

int
splvm(void)
{

	return port_splraise(IPL_VM);
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
	mutex_enter(&sysctl_lock);
	if (*log == NULL) {
		*log = kmem_zalloc(sizeof(**log), KM_SLEEP);
		sysctls = *log;
	}
	KASSERT((*log)->count < SYSCTLS);
	node = &(*log)->nodes[(*log)->count++];
	node->sysctl_name = name;
	node->sysctl_func = func;
	node->sysctl_data = data;
	mutex_exit(&sysctl_lock);
	if (made != NULL)
		*made = node;
	return 0;
}

void
sysctl_teardown(struct sysctllog **log)
{

	mutex_enter(&sysctl_lock);
	if (sysctls == *log)
		sysctls = NULL;
	if (*log != NULL)
		kmem_free(*log, sizeof(**log));
	*log = NULL;
	mutex_exit(&sysctl_lock);
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
	bool found = false;
	int i;

	mutex_enter(&sysctl_lock);
	for (i = 0; !found && sysctls != NULL && i < sysctls->count; i++) {
		node = &sysctls->nodes[i];
		if (strcmp(node->sysctl_name, name) == 0)
			found = (*node->sysctl_func)(value, &len, node) == 0;
	}
	mutex_exit(&sysctl_lock);
	return found;
}
