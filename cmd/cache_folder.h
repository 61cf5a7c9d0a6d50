/* cache_folder: where a command may keep what it can make again. */
#ifndef CMD_CACHE_FOLDER_H
#define CMD_CACHE_FOLDER_H

/* The store's cache/<what> when there is a store, else $XDG_CACHE_HOME/lora/<what>, else
 * ~/.cache/lora/<what>; it need not exist. The caller's, to free with sys_free(). NULL: no such
 * place, or no memory. */
char *cache_folder(const char *store_path, const char *what);

#endif
