/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Xen PV drivers in Rust, as a NetBSD kernel takes them: see xenpv(9).
 * Made of the library's source; changes here are lost.
 *
 * Each function says in which context it may be called. "Thread" is a thread
 * that may sleep. "Any up to IPL_VM" is that, or an interrupt or a spin mutex
 * of no higher level. Errors are errno(2) numbers, 0 is success.
 *
 * Functions that are "extern" here are up-calls: the glue has them. The
 * library also enters Xen by the kernel's symbol hypercall_page.
 */

#ifndef _XENPV_H_
#define _XENPV_H_

#include <sys/types.h>
#include <sys/stdbool.h>

/*
 * The version of the C interface. It changes whenever a kernel that was
 * compiled with an older header could go wrong with the library.
 */
#define XENPV_ABI 3

/* The most queues that a disk can be given. */
#define XENPV_XBD_MAX_QUEUES 16

/* The most bytes that a transfer can be allowed. */
#define XENPV_XBD_MAX_TRANSFER 1048576

/* The disk can't be written. */
#define XENPV_XBD_READONLY 1

/* It is a CD-ROM. */
#define XENPV_XBD_CDROM 2

/* Its medium can be removed. */
#define XENPV_XBD_REMOVABLE 4

/* A flush is worth trying. */
#define XENPV_XBD_FLUSH 8

/* Nothing has happened. */
#define XENPV_XBD_IDLE 0

/* The disk is there: xenpv_xbd_start takes transfers. */
#define XENPV_XBD_CONNECTED 1

/* The disk has another size now, or something else of it is different. */
#define XENPV_XBD_RESIZED 2

/* The back end wants to go: xenpv_xbd_close when the disk can be spared. */
#define XENPV_XBD_CLOSE_WANTED 3

/* The disk is gone, and nothing of it is held any more: xenpv_xbd_destroy. */
#define XENPV_XBD_CLOSED 4

/*
 * The device has failed, which was logged, and is being closed: xenpv_xbd_step
 * again in a tenth of a second.
 */
#define XENPV_XBD_FAILED 5

/*
 * The back end still maps pages of what is over: xenpv_xbd_step again in a
 * tenth of a second.
 */
#define XENPV_XBD_AGAIN 6

/* Read sectors. */
#define XENPV_XBD_READ 0

/* Write sectors. */
#define XENPV_XBD_WRITE 1

/* Make everything that is over durable. It has no data. */
#define XENPV_XBD_SYNC 2

/* Nobody needs what is in sectors any more. It has a length, and no data. */
#define XENPV_XBD_DISCARD 3

/* Operation not permitted. */
#define XENPV_EPERM 1

/* No such file or directory. */
#define XENPV_ENOENT 2

/* No such process; here: no such domain. */
#define XENPV_ESRCH 3

/* Input/output error. */
#define XENPV_EIO 5

/* Device not configured. */
#define XENPV_ENXIO 6

/* Argument list too long. */
#define XENPV_E2BIG 7

/* Cannot allocate memory. */
#define XENPV_ENOMEM 12

/* Permission denied. */
#define XENPV_EACCES 13

/* Bad address. */
#define XENPV_EFAULT 14

/* Device busy. */
#define XENPV_EBUSY 16

/* File exists. */
#define XENPV_EEXIST 17

/* Invalid argument. */
#define XENPV_EINVAL 22

/* No space left on device. */
#define XENPV_ENOSPC 28

/* Read-only file system. */
#define XENPV_EROFS 30

/* Resource temporarily unavailable: the caller tries again later. */
#define XENPV_EAGAIN 35

/* Operation not supported. */
#define XENPV_EOPNOTSUPP 45

/* Operation timed out. */
#define XENPV_ETIMEDOUT 60

/* Function not implemented. */
#define XENPV_ENOSYS 78

/* Bad or corrupt message: a node of xenstore with garbage. */
#define XENPV_EBADMSG 88

/* A line about a fault. */
#define XENPV_LOG_ERROR 0

/* A line about something odd. */
#define XENPV_LOG_WARN 1

/* A line that an operator wants to see once. */
#define XENPV_LOG_INFO 2

/* A line for whoever looks for a fault. */
#define XENPV_LOG_DEBUG 3

/* A disk. */
struct xenpv_xbd;

/* What a console has done so far. */
struct xenpv_cons_counters {
	/* Bytes written. */
	uint64_t written;
	/* Bytes read. */
	uint64_t read;
	/* Events sent to the other end. */
	uint64_t notifications;
};

/*
 * What a disk is made of. All of it is the caller's, and stays until the disk
 * is destroyed.
 */
struct xenpv_xbd_setup {
	/* Name for messages, as in "xbd0". */
	const char *name;
	/* Directory in xenstore, as in "device/vbd/51712". */
	const char *path;
	/* What the up-calls about events and watches are given. */
	void *device;
	/*
	 * For each queue that there may be, a kmutex_t of IPL_BIO that is used
	 * for nothing else. The array need not stay.
	 */
	void *const *mutexes;
	/* What done is given. */
	void *arg;
	/*
	 * Is called when what xenpv_xbd_start took is over, once for each,
	 * with 0 or an error of NetBSD's. Called without any lock, in an
	 * interrupt or a thread.
	 */
	void (*done)(void *arg, void *token, int error);
	/*
	 * The largest transfer in bytes, MAXPHYS: larger ones are refused. The
	 * buffer for unaligned ones has this size. At most
	 * XENPV_XBD_MAX_TRANSFER.
	 */
	uint32_t max_transfer;
	/*
	 * How many queues there may be, one for each CPU that is to have its
	 * own: 1 to XENPV_XBD_MAX_QUEUES. There are fewer if the back end has
	 * fewer.
	 */
	uint32_t queues;
};

/* What a disk is, as its back end says. */
struct xenpv_xbd_info {
	/* Size in sectors of 512 bytes. */
	uint64_t sectors;
	/* Smallest unit of I/O in bytes: a power of two from 512 to 4096. */
	uint32_t sector_size;
	/* Best unit of I/O in bytes. */
	uint32_t physical_sector_size;
	/* XENPV_XBD_READONLY and others. */
	uint32_t flags;
	/* How many queues there are. */
	uint32_t queues;
};

/* What a disk has done so far. */
struct xenpv_xbd_counters {
	/* Requests sent to the back end. */
	uint64_t requests;
	/* Those of them that were indirect. */
	uint64_t indirect;
	/* Data segments in them. */
	uint64_t segments;
	/* Flushes among the requests. */
	uint64_t flushes;
	/* Barriers among the requests. */
	uint64_t barriers;
	/* Discards among the requests. */
	uint64_t discards;
	/* Events sent to the back end. */
	uint64_t notifications;
	/* Transfers that failed. */
	uint64_t errors;
	/* Answers to requests whose pages the back end still had mapped. */
	uint64_t still_mapped;
	/*
	 * Transfers from or to memory that isn't aligned to sectors, by way of
	 * a buffer.
	 */
	uint64_t bounced;
	/* How often a transfer was put off because that buffer was in use. */
	uint64_t bounce_busy;
	/* How often a transfer found a ring full. */
	uint64_t queue_full;
	/*
	 * Transfers that will never be over, because a back end that is gone
	 * keeps their pages.
	 */
	uint64_t kept;
};

/* What the grant table is, in numbers. */
struct xenpv_grant_counters {
	/* References that there are. */
	uint32_t entries;
	/* Of these, free ones. */
	uint32_t free;
	/*
	 * References that a peer has not let go of, and that are tried again.
	 */
	uint32_t quarantined;
	/* References that are lost for ever. */
	uint32_t leaked;
};

/*
 * Returns the version of the C interface that the library has, for comparison
 * with XENPV_ABI of the header.
 *
 * Context: any. Locks: none.
 */
uint32_t xenpv_abi(void);

/*
 * Takes the console whose ring page is mapped at page, and whose event channel
 * is port; the hypervisor's console, which only dom0 has, if page is NULL.
 * What a boot loader has left in the rings goes out first.
 *
 * Context: any, once, or again after the rings have moved; works as soon as
 * the page is mapped. Locks: the caller has the console to itself. Ownership:
 * the page is the console's for ever.
 */
void xenpv_cons_init(void *page,
		     uint32_t port);

/*
 * Writes what there is room for, and returns how many bytes that was; 0 if the
 * other end's indices lie.
 *
 * Context: any. Locks: the caller has the console to itself.
 */
size_t xenpv_cons_write(const void *bytes,
			size_t len);

/*
 * Reads what there is, len bytes at most, and returns how many there were; 0
 * if the other end's indices lie.
 *
 * Context: any. Locks: the caller has the console to itself.
 */
size_t xenpv_cons_read(void *bytes,
		       size_t len);

/*
 * Writes as xenpv_cons_write, but whatever state the console was interrupted
 * in: it goes on from what the page says. To be followed by xenpv_cons_resync
 * before the others are used again.
 *
 * Context: polled: in the debugger, or after a panic. Locks: none; nobody else
 * runs.
 */
size_t xenpv_cons_poll_write(const void *bytes,
			     size_t len);

/*
 * Reads as xenpv_cons_read, but whatever state the console was interrupted in.
 * To be followed by xenpv_cons_resync before the others are used again.
 *
 * Context: polled: in the debugger, or after a panic. Locks: none; nobody else
 * runs.
 */
size_t xenpv_cons_poll_read(void *bytes,
			    size_t len);

/*
 * Goes on where the polled functions have stopped.
 *
 * Context: any. Locks: the caller has the console to itself.
 */
void xenpv_cons_resync(void);

/*
 * Writes what the console has done so far to *counters.
 *
 * Context: any. Locks: the caller has the console to itself.
 */
void xenpv_cons_counters(struct xenpv_cons_counters *counters);

/*
 * Makes a disk of a device, in *disk. xenpv_xbd_step does the rest.
 *
 * Context: thread; sleeps. Locks: none held. Ownership: the disk is the
 * caller's, until xenpv_xbd_destroy; what the setup points to stays until
 * then, the setup itself need not. Errors, also logged: EINVAL for a setup
 * with other numbers than it may have, ENXIO without a grant table, ENOMEM,
 * EBADMSG for a node with garbage, ENOENT for one that isn't there, and what
 * xenstore says.
 */
int xenpv_xbd_create(const struct xenpv_xbd_setup *setup,
		     struct xenpv_xbd **disk);

/*
 * Goes on with the life of a disk: after xenpv_xbd_create, when a watch of it
 * has fired, when xenpv_xbd_intr says so, and after xenpv_xbd_close. Returns
 * XENPV_XBD_IDLE or what has happened; *info is written with CONNECTED and
 * RESIZED. To be called again at once after CONNECTED and RESIZED, and in a
 * while after FAILED and AGAIN.
 *
 * Context: the device's thread, one at a time; sleeps. Locks: none held;
 * enters the mutexes, one at a time.
 */
int xenpv_xbd_step(const struct xenpv_xbd *disk,
		   struct xenpv_xbd_info *info);

/*
 * Wants a disk to end: from now on xenpv_xbd_start fails. What is in flight
 * ends first; XENPV_XBD_CLOSED tells when nothing of the disk is held any
 * more.
 *
 * Context: the device's thread; sleeps. Locks: none held; enters the mutexes,
 * one at a time.
 */
void xenpv_xbd_close(const struct xenpv_xbd *disk);

/*
 * Waits no longer for a back end that neither answers nor goes: the next
 * xenpv_xbd_step ends the disk whatever the back end says, and what is in
 * flight with EIO.
 *
 * Context: the device's thread. Locks: any.
 */
void xenpv_xbd_abandon(const struct xenpv_xbd *disk);

/*
 * Frees a disk, after XENPV_XBD_CLOSED. Before, what is in flight would be
 * lost without a word.
 *
 * Context: thread; sleeps. Locks: none held. Ownership: the disk is gone;
 * nobody is inside any of its functions.
 */
void xenpv_xbd_destroy(struct xenpv_xbd *disk);

/*
 * Starts a transfer of len bytes at sector, in units of 512 bytes, from or to
 * wired kernel memory at data; op is one of XENPV_XBD_READ, WRITE, SYNC,
 * DISCARD. The setup's done tells of its end, with token, perhaps before this
 * returns. cpu is a number of any size: transfers of the same number go by the
 * same queue as long as it has room, those of different numbers by different
 * ones as far as there are so many.
 *
 * A transfer is sent as one request or several, and ends once. Of a discard,
 * whole units are sent, as the back end has told how large they are and where
 * the first one begins; if there is none in it, it is over at once.
 *
 * Context: any up to IPL_BIO. Locks: enters the mutexes, one at a time.
 * Ownership: data is the disk's until done. Errors; there is no done then:
 * EAGAIN if all rings are full, or the buffer for unaligned memory is in use,
 * to be tried again after a done, which is sure to come; EROFS; EOPNOTSUPP for
 * what the back end doesn't do; EINVAL beyond the end of the disk, for more
 * than the setup's max_transfer, which doesn't bound a discard, or for what
 * doesn't begin and end with a sector of the disk's; EIO if the disk is not
 * connected, or closing.
 */
int xenpv_xbd_start(const struct xenpv_xbd *disk,
		    uint32_t cpu,
		    int op,
		    uint64_t sector,
		    void *data,
		    size_t len,
		    void *token);

/*
 * Answers an event of a disk, on one of its ports: calls the setup's done for
 * each transfer that is over. Returns whether the device's thread is to call
 * xenpv_xbd_step. Different ports may be answered by different CPUs at once.
 *
 * Context: interrupt of IPL_BIO, or thread. Locks: enters a mutex; not inside
 * when it calls done.
 */
bool xenpv_xbd_intr(const struct xenpv_xbd *disk,
		    uint32_t port);

/*
 * Writes len bytes of wired kernel memory at data, aligned to sectors, to
 * sector, and waits for the end by polling. From then on the disk does nothing
 * else: xenpv_xbd_start fails, and what was in flight never ends.
 *
 * Context: the one that dumps; other CPUs may still run, interrupts of this
 * one don't come. Locks: none entered: it takes a queue that nobody is inside
 * of. Errors: EBUSY if somebody is inside the mutex of each queue and doesn't
 * leave, as when the panic has come inside of the only one; ENXIO, EROFS,
 * EINVAL, EIO, ETIMEDOUT after 10 seconds.
 */
int xenpv_xbd_dump(const struct xenpv_xbd *disk,
		   uint64_t sector,
		   void *data,
		   size_t len);

/*
 * Writes what a disk has done so far to *counters.
 *
 * Context: any up to IPL_BIO. Locks: enters the mutexes, one at a time.
 */
void xenpv_xbd_counters(const struct xenpv_xbd *disk,
			struct xenpv_xbd_counters *counters);

/*
 * Takes over the grant table of the domain, with all its frames.
 *
 * Context: thread, while the system starts, before anything is granted;
 * sleeps. Locks: none. Errors, also logged: EBUSY if it was done already,
 * ENOMEM, and what Xen says.
 */
int xenpv_grant_init(void);

/*
 * Grants the page with frame frame to domain domid, for reading only or for
 * writing, too. The reference is in *gref.
 *
 * Context: any up to IPL_VM. Locks: any. Ownership: the page stays the
 * caller's, and where it is, until xenpv_grant_revoke. Errors: ENXIO before
 * xenpv_grant_init, ENOMEM if all references are in use, EINVAL for a frame
 * beyond 16 TiB.
 */
int xenpv_grant_access(uint16_t domid,
		       uint64_t frame,
		       bool readonly,
		       uint32_t *gref);

/*
 * Ends what xenpv_grant_access has begun, and frees the reference. Returns 0,
 * or EBUSY if the other domain still maps the page: then the reference is
 * freed when it doesn't any more, and the page must stay where it is and be
 * used for nothing else.
 *
 * Context: any up to IPL_VM. Locks: any.
 */
int xenpv_grant_revoke(uint32_t gref);

/*
 * Tells whether another domain maps the page of a reference just now.
 *
 * Context: any. Locks: any.
 */
bool xenpv_grant_mapped(uint32_t gref);

/*
 * Writes what the grant table is to *counters; zeros before xenpv_grant_init.
 *
 * Context: any up to IPL_VM. Locks: any.
 */
void xenpv_grant_counters(struct xenpv_grant_counters *counters);

/*
 * Allocates size bytes, aligned as kmem(9) does it, to 8 bytes at least. It
 * may sleep if its caller may: at IPL_NONE, outside interrupts. NULL if there
 * are none.
 *
 * Context: any up to IPL_VM. Locks: any. Ownership: the library's until
 * xenpv_free.
 */
extern void *xenpv_alloc(size_t size);

/*
 * Frees what xenpv_alloc returned for the same size.
 *
 * Context: any up to IPL_VM. Locks: any.
 */
extern void xenpv_free(void *p, size_t size);

/*
 * Allocates count contiguous pages of address space: backed by wired, zeroed
 * memory, or by nothing, for what the library maps there by itself. NULL if
 * there are none.
 *
 * Context: thread. Locks: none.
 */
extern void *xenpv_pages_alloc(size_t count,
			       bool backed);

/*
 * Frees what xenpv_pages_alloc returned for the same count and kind. Where
 * sleeping is not possible, later.
 *
 * Context: any up to IPL_VM if it is backed, else thread. Locks: any.
 */
extern void xenpv_pages_free(void *va,
			     size_t count,
			     bool backed);

/*
 * Returns the frame number, as Xen knows it, of the page of wired kernel
 * memory in which va lies: the machine frame in a PV kernel, the guest frame
 * in a PVH kernel.
 *
 * Context: any up to IPL_VM. Locks: any.
 */
extern uint64_t xenpv_frame(const void *va);

/*
 * Keeps interrupts up to IPL_VM from this CPU and returns what the level was,
 * for xenpv_splx.
 *
 * Context: any. Locks: any.
 */
extern int xenpv_splvm(void);

/*
 * Puts the interrupt level back.
 *
 * Context: any. Locks: any.
 */
extern void xenpv_splx(int s);

/*
 * Enters a mutex: a kmutex_t that the glue gave to the library.
 *
 * Context: as the mutex demands.
 */
extern void xenpv_mutex_enter(void *mtx);

/* Leaves it. */
extern void xenpv_mutex_exit(void *mtx);

/*
 * Returns the time since boot in nanoseconds.
 *
 * Context: any. Locks: any.
 */
extern uint64_t xenpv_uptime_ns(void);

/*
 * Spins for some microseconds.
 *
 * Context: any. Locks: any.
 */
extern void xenpv_delay_us(uint32_t us);

/*
 * Writes a line of len bytes, without a newline, into the kernel's log, behind
 * "NAME: ". level is one of XENPV_LOG_*.
 *
 * Context: any up to IPL_VM. Locks: any.
 */
extern void xenpv_log(int level,
		      const char *name,
		      const char *line,
		      size_t len);

/*
 * Ends the kernel with a message of len bytes.
 *
 * Context: any. Locks: any.
 */
extern void xenpv_panic(const char *message, size_t len) __dead;

/*
 * Lets the events of port be handled by the device: xenpv_event_establish
 * unmasks it, and its handler is called until xenpv_event_disestablish.
 * Returns 0, or an error of NetBSD's.
 *
 * Context: thread. Locks: none.
 */
extern int xenpv_event_establish(void *device,
				 uint32_t port);

/*
 * Ends that. When it returns, no handler runs for the port, and none will.
 *
 * Context: thread. Locks: none.
 */
extern void xenpv_event_disestablish(void *device, uint32_t port);

/*
 * Masks a port whose other end misbehaves.
 *
 * Context: thread. Locks: none.
 */
extern void xenpv_event_mask(uint32_t port);

/*
 * Sends a message to xenstored by the kernel's own connection and waits for
 * the answer. msg is a struct xsd_sockmsg with its payload behind it; on
 * return type and len are those of the answer, and *reply is its payload, to
 * be freed by xenpv_store_reply_free. Returns 0, or an error of NetBSD's if
 * the connection fails.
 *
 * Context: thread. Locks: none.
 */
extern int xenpv_store_request(void *msg,
			       void **reply);

/*
 * Frees a reply.
 *
 * Context: thread. Locks: none.
 */
extern void xenpv_store_reply_free(void *msg, void *reply);

/*
 * Sets a watch on a path of xenstore. When it fires, it is noted, and the
 * device's thread is woken. Returns the watch in *watch, and 0 or an error of
 * NetBSD's.
 *
 * Context: thread. Locks: none.
 */
extern int xenpv_watch_set(void *device,
			   const char *path,
			   uint32_t *watch);

/*
 * Unsets a watch; it may be set anew under the same number.
 *
 * Context: thread. Locks: none.
 */
extern void xenpv_watch_unset(uint32_t watch);

/*
 * Tells whether a watch has fired since this was last asked.
 *
 * Context: thread. Locks: any.
 */
extern bool xenpv_watch_fired(uint32_t watch);

#endif  /* _XENPV_H_ */
