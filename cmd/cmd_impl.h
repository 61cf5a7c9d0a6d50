/*
 * cmd_impl: what main.c needs of cmd.c. For cmd/ alone.
 */
#ifndef CMD_CMD_IMPL_H
#define CMD_CMD_IMPL_H

#include <signal.h>

#include "cmd/cmd.h"

#define LORA_VERSION "0.1.0"

void cmd_set_interrupted(void);  // async-signal-safe
const char *cmd_hint_text(void); // NULL: no hint was given

#endif
