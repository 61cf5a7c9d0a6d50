/*
 * foreign_impl: what the readers of foreign formats share.
 * A reader says of every tensor which part of which module it is (foreign_add), gets them by module
 * (foreign_group), gives each its name in the base, its scale and the way its values lie, and
 * foreign_build() makes of it what a PEFT file would have said, to be read by that reader.
 */
#ifndef LIBCORE_FORMAT_FOREIGN_IMPL_H
#define LIBCORE_FORMAT_FOREIGN_IMPL_H

#include <stdbool.h>

#include "libcore/format/adapter_file.h"
#include "libcore/format/image.h"
#include "libcore/format/safetensors.h"

enum foreign_part { FOREIGN_A, FOREIGN_B, FOREIGN_ALPHA, FOREIGN_MAGNITUDE, FOREIGN_N_PARTS };

struct foreign_module {
    const char *key;                      // as the file says
    struct tensor parts[FOREIGN_N_PARTS]; // as the file has them
    /* Set by the reader: */
    const char *name; // in the base: "model.layers.0.self_attn.q_proj"
    bool embedding;
    uint64_t rank;
    double scale;
    struct image_view a, b; // A[r, in], B[out, r] (embedding: A[r, vocab], B[dim, r])
};

struct foreign {
    const char *path;   // of the weights, for errors
    const char *format; // adapter.format
    const struct peft_options *opt;
    struct foreign_item *items;
    size_t n_items, cap_items;
    struct foreign_module *modules; // by key; room for those that a reader adds
    size_t n_modules, cap_modules;
    struct image img;      // its arena holds names and made values
    json_t *warnings;      // array, or NULL
    const char *base_name; // or NULL
    struct err *err;
};

int foreign_init(struct foreign *f, const char *path, const char *format,
                 const struct peft_options *opt, struct err *err);
void foreign_release(struct foreign *f);

/* "path:tensor: …", ERR_REFUSED. */
int foreign_refuse(struct foreign *f, const char *tensor, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int foreign_no_memory(struct foreign *f);
int foreign_warn(struct foreign *f, const char *text);

int foreign_add(struct foreign *f, const char *key, size_t key_length, enum foreign_part part,
                const struct tensor *value);
/* f->modules from what was added. ERR_REFUSED: A or B is missing, or one part is there twice. */
int foreign_group(struct foreign *f);
/* One more module than the file's own keys gave; f->modules may move. */
int foreign_add_module(struct foreign *f, const struct foreign_module *m);
/* Sets rank, a and b of factors that lie as PEFT's do: [r, in] and [out, r]. */
int foreign_take_factors(struct foreign *f, struct foreign_module *m);

/* The adapter. */
int foreign_build(struct foreign *f, struct adapter **out, const char *path);

/*
 * The module of a causal language model that `key` means, in the spelling of transformers; *out
 * lives in f's arena, and is NULL when it means none. separator: '.', or '_' where a format wrote
 * dots that way.
 */
int foreign_name(struct foreign *f, const char *key, char separator, const char **out);

/* The one number of an alpha tensor. */
int foreign_scalar(struct foreign *f, const char *key, const struct tensor *t, double *out);

/* The readers: `path` is the weights' file, config_path of MLX or NULL. */
int kohya_read(struct adapter **out, const char *weights, const char *path,
               const struct peft_options *opt, struct err *err);
int mlx_read(struct adapter **out, const char *weights, const char *config, const char *path,
             const struct peft_options *opt, struct err *err);
int gguf_lora_read(struct adapter **out, const char *weights, const char *path,
                   const struct peft_options *opt, struct err *err);

#endif
