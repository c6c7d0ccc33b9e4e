/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What the parts of the played kernel know of each other, beside kernel.h.
 */

#ifndef _PORT_H_
#define _PORT_H_

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct cfattach;
struct cfdriver;
struct device;

#define	HOST_UNITS	4	/* of a driver */

struct uio {
	char	*data;
	size_t	resid;
	int64_t	offset;
};

/* port.c; most of what it has is declared in kernel.h. */
extern int port_threads_left, port_skipped;
extern long port_blocks;
void	port_vsay(const char *, va_list);
int	port_splraise(int);
int	port_interrupt(int, int (*)(void *), void *);
void	port_may_sleep(const char *);
void	port_set_cpu(unsigned int);
void	*port_malloc(size_t);
void	kern_free(void *);
void	port_delay(unsigned int);
void	panic(const char *, ...)
	    __attribute__((__noreturn__, __format__(__printf__, 1, 2)));

/* The Rust side: a piece of the log. */
void	host_say(const char *, size_t);

/* nodes.c, disk.c. */
void	port_nodes_init(void);
void	port_nodes_revive(int);
void	port_disks_init(void);

/* kernel.c, nodes.c, disk.c, for the Rust side. */
void	host_boot(void);
void	host_driver(const struct cfattach *, struct cfdriver *, const char *);
struct device *host_config_found(const char *, int, const char *);
int	host_config_detach(struct device *, int);
int	host_pending(void);
int	host_open(bool, int, int);
int	host_close(bool, int);
int	host_ioctl(int, unsigned long, void *);
int	host_size(int);
int	host_dump(int, int64_t, void *, size_t);
int	host_rawio(int, bool, void *, size_t, int64_t);
int	host_discard(int, int64_t, int64_t);
unsigned int host_openmask(int);
void	host_openlock(int, bool);
int64_t	host_searched(int);
bool	host_sysctl(const char *, uint64_t *);
struct buf *host_buf(int, bool, int64_t, void *, size_t);
void	host_strategy(struct buf *);
int	host_biowait(struct buf *);
bool	host_is_over(struct buf *);
void	host_buf_free(struct buf *);

/* tty.c, for the Rust side. */
void	host_cons_early(void *, uint32_t);
void	host_cons_attach(void);
void	host_cons_put(const char *, size_t);
int	host_cons_get(void);
void	host_cons_poll(int);
int	host_magics(void);
int	host_tty_open(void);
int	host_tty_close(void);
void	host_tty_write(const char *, size_t);
size_t	host_tty_input(char *, size_t);

/* conf_xbd.c, conf_xencons.c: what config(1) writes for a driver. */
void	host_conf_xbd(void);
void	host_conf_xencons(void);

#endif /* _PORT_H_ */
