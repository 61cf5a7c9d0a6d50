/*
 * transfer_rows: options that the commands which bring adapters in and out have in common, as rows
 * of their tables; each names the variable of the command that it sets.
 */
#ifndef CMD_TRANSFER_ROWS_H
#define CMD_TRANSFER_ROWS_H

#include "cmd/cmd.h"

#define PLAIN_HTTP_ROW(variable)                                                                   \
    {                                                                                              \
        .long_name = "plain-http", .type = OPTION_FLAG, .value = &(variable),                      \
        .help = "No TLS; for a registry on this machine alone."                                    \
    }

#define RETRY_DELAY_ROW(variable)                                                                  \
    {                                                                                              \
        .long_name = "retry-delay", .type = OPTION_INT, .value = &(variable), .value_name = "MS",  \
        .min = 1, .max = 60000,                                                                    \
        .help = "Wait before the second of five tries, doubled before each further one (500)."     \
    }

#define IGNORE_FIELD_ROW(variable)                                                                 \
    {                                                                                              \
        .long_name = "ignore-field", .type = OPTION_LIST, .value = &(variable),                    \
        .value_name = "FIELD",                                                                     \
        .help = "Pass over this field of adapter_config.json; recorded. May be repeated."          \
    }

#define OCI_COMPAT_ROW(variable)                                                                   \
    {                                                                                              \
        .long_name = "oci-compat", .type = OPTION_STRING, .value = &(variable),                    \
        .value_name = "FORM", .choices = "model,image,empty",                                      \
        .help = "For registries that know no ModelPack: an image's config, or the empty one."      \
    }

#endif
