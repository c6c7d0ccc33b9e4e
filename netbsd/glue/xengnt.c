/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * The grant table under the names that NetBSD's drivers know, in place of
 * sys/arch/xen/xen/xengnt.c: they and the drivers in Rust share one table.
 */

#include <sys/cdefs.h>
__KERNEL_RCSID(0, "$NetBSD$");

#include <sys/param.h>
#include <sys/systm.h>
#include <sys/errno.h>

#include <xen/hypervisor.h>
#include <xen/granttables.h>

#include "xenpv_var.h"

void
xengnt_init(void)
{
	int error;

	xenpv_check_abi();
	error = xenpv_grant_init();
	if (error != 0)
		panic("xengnt: no grant table: error %d", error);
}

/*
 * Nobody looks at the result, and xbd(4) isn't asked either: a domain that is
 * saved is lost, and says so here while its console still works.
 */
bool
xengnt_suspend(void)
{

	printf("xengnt: grants don't survive a suspend yet\n");
	return false;
}

bool
xengnt_resume(void)
{

	panic("xengnt: grants don't survive a suspend yet");
}

int
xengnt_grant_access(domid_t dom, paddr_t ma, int ro, grant_ref_t *entryp)
{

	return xenpv_grant_access(dom, ma >> PAGE_SHIFT, ro != 0, entryp);
}

void
xengnt_revoke_access(grant_ref_t entry)
{

	if (xenpv_grant_revoke(entry) == EBUSY)
		printf("xengnt: grant %u: still mapped by its domain, "
		    "which may see what its page is used for next\n", entry);
}

int
xengnt_status(grant_ref_t entry)
{

	return xenpv_grant_mapped(entry);
}
