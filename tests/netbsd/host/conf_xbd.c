/*
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What config(1) writes for a kernel that has xbd(4).
 */

#include <kernel.h>

#include "port.h"

extern const struct cfattach xbd_ca;
extern struct cfdriver xbd_cd;
struct cfdriver xbd_cd = { "xbd" };

void
host_conf_xbd(void)
{

	host_driver(&xbd_ca, &xbd_cd, "vbd");
}
