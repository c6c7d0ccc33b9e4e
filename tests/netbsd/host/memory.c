/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The played kernel's memory, by malloc: what is freed has the size that it was
 * allocated with.
 */

#include <stdlib.h>
#include <string.h>

#include "port.h"

/* As kernel.h has it, which can't be included beside the host's headers. */
#define	KM_SLEEP	1

struct malloc_type;
struct malloc_type *const M_DEVBUF;

#define	MAGIC	0x6b6d656dUL

struct port_block {
	size_t	size;
	size_t	magic;
};

long port_blocks;		/* allocated and not freed */

void *
port_malloc(size_t size)
{
	struct port_block *b = calloc(1, sizeof(*b) + size);

	b->size = size;
	b->magic = MAGIC;
	__atomic_add_fetch(&port_blocks, 1, __ATOMIC_RELAXED);
	return b + 1;
}

void
kern_free(void *p)
{
	struct port_block *b = (struct port_block *)p - 1;

	if (b->magic != MAGIC)
		panic("memory is freed that isn't allocated");
	b->magic = 0;
	__atomic_sub_fetch(&port_blocks, 1, __ATOMIC_RELAXED);
	free(b);
}

void *
kmem_intr_alloc(size_t size, int flags)
{
	void *p;

	if (size == 0)
		panic("kmem_alloc of nothing");
	if (flags == KM_SLEEP)
		port_may_sleep("kmem_alloc");
	p = port_malloc(size);
	/* Nobody was promised zeros. */
	memset(p, 0xa5, size);
	return p;
}

void *
kmem_alloc(size_t size, int flags)
{

	return kmem_intr_alloc(size, flags);
}

void *
kmem_zalloc(size_t size, int flags)
{
	void *p = kmem_intr_alloc(size, flags);

	if (p != NULL)
		memset(p, 0, size);
	return p;
}

void
kmem_intr_free(void *p, size_t size)
{

	if (((struct port_block *)p - 1)->size != size)
		panic("%zu bytes are freed as %zu",
		    ((struct port_block *)p - 1)->size, size);
	kern_free(p);
}

void
kmem_free(void *p, size_t size)
{

	port_may_sleep("kmem_free");
	kmem_intr_free(p, size);
}
