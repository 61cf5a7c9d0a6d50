#include "libcore/tensor/tensor.h"

#include "tests/lib/test.h"

static const char bytes[64];

TEST(sizes_follow_shape_and_type)
{
    struct tensor t = {.dtype = DTYPE_BF16, .n_dims = 2, .shape = {3, 5}, .data = bytes};
    EXPECT_INT(tensor_n_values(&t), 15);
    EXPECT_INT(tensor_n_bytes(&t), 30);
    t.dtype = DTYPE_F4;
    EXPECT_INT(tensor_n_bytes(&t), 8); // 60 bits
    t.shape[1] = 0;
    EXPECT_INT(tensor_n_values(&t), 0);
    EXPECT_INT(tensor_n_bytes(&t), 0);
    struct tensor scalar = {.dtype = DTYPE_F32, .data = bytes};
    EXPECT_INT(tensor_n_values(&scalar), 1);
    EXPECT_INT(tensor_n_bytes(&scalar), 4);
    EXPECT(tensor_present(&scalar));
    EXPECT(!tensor_present(&(struct tensor){.dtype = DTYPE_F32}));
}

TEST(shapes_compare)
{
    struct tensor a = {.n_dims = 2, .shape = {3, 5}}, b = {.n_dims = 2, .shape = {3, 5, 9}};
    EXPECT(tensor_same_shape(&a, &b));
    b.shape[1] = 4;
    EXPECT(!tensor_same_shape(&a, &b));
    b = a;
    b.n_dims = 1;
    EXPECT(!tensor_same_shape(&a, &b));
    EXPECT(tensor_has_shape(&a, 2, (const uint64_t[]){3, 5}));
}

TEST(shapes_print)
{
    char buf[64], tiny[6];
    struct tensor t = {.n_dims = 2, .shape = {4096, 16}};
    EXPECT_STR(tensor_shape_text(&t, buf, sizeof buf), "[4096, 16]");
    EXPECT_STR(tensor_shape_text(&t, tiny, sizeof tiny), "[4096");
    t.n_dims = 0;
    EXPECT_STR(tensor_shape_text(&t, buf, sizeof buf), "[]");
}

TEST(rows_lie_behind_one_another)
{
    struct tensor t = {.dtype = DTYPE_F32, .n_dims = 3, .shape = {2, 2, 3}, .data = bytes};
    EXPECT_INT((const char *)tensor_row(&t, 1) - bytes, 24);
    t.n_dims = 1;
    EXPECT_INT((const char *)tensor_row(&t, 1) - bytes, 4);
}
