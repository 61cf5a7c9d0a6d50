#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "version") == 0) {
        puts("lora 0.1.0");
        return 0;
    }
    puts("usage: lora <command> [options] [arguments]");
    return argc > 1 && strcmp(argv[1], "help") == 0 ? 0 : 2;
}
