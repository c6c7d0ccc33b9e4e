/*
 * The workload of src/work.rs on the C macros of Xen's public headers. Compiled when it is measured, by each C compiler.
 */
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__

#include <stdint.h>
#include <string.h>

/* As Linux has them on x86: stores are ordered there, and a locked instruction on the stack is quicker than mfence. */
#define xen_mb() __asm__ volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc")
#define xen_rmb() __asm__ volatile("" ::: "memory")
#define xen_wmb() __asm__ volatile("" ::: "memory")

#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/ring.h>
#include <xen/io/blkif.h>
#include <xen/io/netif.h>

/* A driver hands its copy of a request to other functions; so it has to be one, of all of it. */
#define IN_MEMORY(value) __asm__ volatile("" :: "r"(&(value)) : "memory")

#define PAGE 4096
#define BROKEN UINT64_MAX

#define BLK(kind, segments) \
static inline void kind##_fill(blkif_request_t *request, uint64_t id) \
{ \
	request->operation = BLKIF_OP_READ; \
	request->nr_segments = segments; \
	request->handle = 0; \
	request->id = id; \
	request->sector_number = id << 3; \
	for (uint32_t index = 0; index < segments; index++) { \
		request->seg[index].gref = id + index; \
		request->seg[index].first_sect = 0; \
		request->seg[index].last_sect = 7; \
	} \
} \
\
static inline uint64_t kind##_serve(const blkif_request_t *request, blkif_response_t *response) \
{ \
	uint64_t sum = request->sector_number; \
	if (request->nr_segments != segments) \
		return BROKEN; \
	for (uint32_t index = 0; index < segments; index++) \
		sum += request->seg[index].gref + request->seg[index].last_sect; \
	response->id = request->id; \
	response->operation = request->operation; \
	response->status = BLKIF_RSP_OKAY; \
	return sum; \
} \
\
static inline uint64_t kind##_take(const blkif_response_t *response) \
{ \
	return response->id + response->status; \
}

BLK(blk1, 1)
BLK(blk11, 11)

static inline void net_tx_fill(netif_tx_request_t *request, uint64_t id)
{
	request->gref = id;
	request->offset = 0;
	request->flags = 0;
	request->id = id;
	request->size = 1514;
}

static inline uint64_t net_tx_serve(const netif_tx_request_t *request, netif_tx_response_t *response)
{
	response->id = request->id;
	response->status = NETIF_RSP_OKAY;
	return (uint64_t)request->gref + request->size;
}

static inline uint64_t net_tx_take(const netif_tx_response_t *response)
{
	return response->id + response->status;
}

static inline void net_rx_fill(netif_rx_request_t *request, uint64_t id)
{
	request->id = id;
	request->gref = id;
}

static inline uint64_t net_rx_serve(const netif_rx_request_t *request, netif_rx_response_t *response)
{
	response->id = request->id;
	response->offset = 0;
	response->flags = 0;
	response->status = 1514;
	return request->gref;
}

static inline uint64_t net_rx_take(const netif_rx_response_t *response)
{
	return response->id + response->status;
}

/*
 * Both ends of a ring. The functions of the ends aren't inlined: they are in two domains.
 */
#define WORK(kind, ring) \
struct kind##_state { \
	ring##_front_ring_t front; \
	uint64_t notified_back; \
	/* Of another thread: on other lines of the cache. */ \
	ring##_back_ring_t back __attribute__((aligned(128))); \
	uint64_t notified_front; \
}; \
\
static __attribute__((noinline)) void \
kind##_submit(struct kind##_state *state, uint64_t first, uint32_t batch) \
{ \
	int notify; \
	for (uint32_t count = 0; count < batch; count++) { \
		if (RING_FULL(&state->front)) \
			break; \
		ring##_request_t *to = RING_GET_REQUEST(&state->front, state->front.req_prod_pvt); \
		kind##_fill(to, first + count); \
		state->front.req_prod_pvt++; \
	} \
	RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(&state->front, notify); \
	state->notified_back += notify; \
} \
\
static __attribute__((noinline)) uint64_t kind##_poll_back(struct kind##_state *state) \
{ \
	uint64_t sum = 0; \
	int more, notify; \
	do { \
		RING_IDX end = state->back.sring->req_prod; \
		xen_rmb(); \
		if (RING_REQUEST_PROD_OVERFLOW(&state->back, end)) \
			return BROKEN; \
		while (state->back.req_cons != end) { \
			ring##_request_t request; \
			RING_COPY_REQUEST(&state->back, state->back.req_cons, &request); \
			IN_MEMORY(request); \
			state->back.req_cons++; \
			ring##_response_t *to = RING_GET_RESPONSE(&state->back, state->back.rsp_prod_pvt); \
			sum += kind##_serve(&request, to); \
			state->back.rsp_prod_pvt++; \
		} \
		RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(&state->back, notify); \
		state->notified_front += notify; \
		RING_FINAL_CHECK_FOR_REQUESTS(&state->back, more); \
	} while (more); \
	return sum; \
} \
\
static __attribute__((noinline)) uint64_t kind##_poll_front(struct kind##_state *state) \
{ \
	uint64_t sum = 0; \
	int more; \
	do { \
		RING_IDX end = state->front.sring->rsp_prod; \
		xen_rmb(); \
		if (RING_RESPONSE_PROD_OVERFLOW(&state->front, end)) \
			return BROKEN; \
		for (RING_IDX at = state->front.rsp_cons; at != end; at++) { \
			ring##_response_t response; \
			RING_COPY_RESPONSE(&state->front, at, &response); \
			sum += kind##_take(&response); \
		} \
		state->front.rsp_cons = end; \
		RING_FINAL_CHECK_FOR_RESPONSES(&state->front, more); \
	} while (more); \
	return sum; \
} \
\
uint64_t kind##_state_size(void) \
{ \
	return sizeof(struct kind##_state); \
} \
\
void kind##_open(void *page, void *state_memory) \
{ \
	struct kind##_state *state = state_memory; \
	ring##_sring_t *shared = page; \
	memset(state, 0, sizeof(*state)); \
	XEN_FRONT_RING_INIT(&state->front, shared, PAGE); \
	BACK_RING_INIT(&state->back, shared, PAGE); \
} \
\
uint64_t kind##_run(void *state_memory, uint64_t rounds, uint32_t batch) \
{ \
	struct kind##_state *state = state_memory; \
	uint64_t sum = 0; \
	for (uint64_t round = 0; round < rounds; round++) { \
		kind##_submit(state, round * batch, batch); \
		sum += kind##_poll_back(state); \
		sum += kind##_poll_front(state); \
	} \
	return sum + state->notified_back + state->notified_front; \
}

/* The two ends in threads: each arms its event once whenever it finds nothing, and then looks until there is something. */
#define LOCKSTEP(kind) \
uint64_t kind##_front(void *state_memory, uint64_t rounds, uint32_t batch) \
{ \
	struct kind##_state *state = state_memory; \
	uint64_t sum = 0; \
	for (uint64_t round = 0; round < rounds; round++) { \
		RING_IDX end = state->front.req_prod_pvt + batch; \
		kind##_submit(state, round * batch, batch); \
		while (state->front.rsp_cons != end) { \
			while (!RING_HAS_UNCONSUMED_RESPONSES(&state->front)) \
				__asm__ volatile("pause" ::: "memory"); \
			sum += kind##_poll_front(state); \
		} \
	} \
	return sum; \
} \
\
uint64_t kind##_back(void *state_memory, uint64_t rounds, uint32_t batch) \
{ \
	struct kind##_state *state = state_memory; \
	uint64_t sum = 0; \
	RING_IDX end = state->back.req_cons + rounds * batch; \
	while (state->back.req_cons != end) { \
		while (!RING_HAS_UNCONSUMED_REQUESTS(&state->back)) \
			__asm__ volatile("pause" ::: "memory"); \
		sum += kind##_poll_back(state); \
	} \
	return sum; \
}

WORK(blk1, blkif)
WORK(blk11, blkif)
WORK(net_tx, netif_tx)
WORK(net_rx, netif_rx)
LOCKSTEP(blk1)
LOCKSTEP(blk11)
LOCKSTEP(net_tx)
LOCKSTEP(net_rx)
