/* config_file.c - reads the configuration file through libinih.
 *
 * [server], [model] and [engine] hold the settings of option_table.c under their names; keys before any
 * section are taken as well. What is not known is refused with file, line and the nearest known key: a typing
 * mistake must not become a default. libinih tells no line numbers to its handler, so the lines are counted
 * in the reader. */
#include "launcher/options/options.h"

#include "base/file.h"

#include <errno.h>
#include <ini.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_FILE_BYTES_MAX (1u << 20)
#define CONFIG_LINE_MAX       4096

struct config_reader {
    struct options *options;
    const char *path;
    const char *text; /* the rest of the file */
    int line;
    int failed; /* negative errno of the first refusal */
    struct error *error;
};

static const char *const sections[] = {"server", "model", "engine"};

/* One line for libinih, like fgets. A line that does not fit would be cut in two by it: refused here. */
static char *next_line(char *line, int size, void *user) {
    struct config_reader *r = user;
    if (!*r->text || r->failed)
        return NULL;
    size_t n = strcspn(r->text, "\n");
    n += r->text[n] == '\n';
    r->line++;
    if (n >= (size_t)size) {
        r->failed = error_set(
                r->error, -EINVAL, "%s:%d: the line is longer than %d bytes", r->path, r->line, size - 1);
        return NULL;
    }
    memcpy(line, r->text, n);
    line[n] = '\0';
    r->text += n;
    return line;
}

static int refuse_section(struct config_reader *r, const char *section) {
    return error_set(r->error, -EINVAL,
            "%s:%d: there is no section [%.64s]; the sections are [server], [model] and [engine]", r->path,
            r->line, section);
}

static int refuse_key(struct config_reader *r, const char *key) {
    for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++)
        if (strcmp(key, sections[i]) == 0)
            return error_set(r->error, -EINVAL, "%s:%d: '%s' is a section: write [%s] in a line of its own",
                    r->path, r->line, key, key);
    if (option_find(key, strlen(key), VERB_SERVE | VERB_CLIENTS))
        return error_set(r->error, -EINVAL, "%s:%d: '%.64s' is for the command line only, not for this file",
                r->path, r->line, key);
    const char *near = option_nearest(key, strlen(key), VERB_SERVE, /* in_file= */ true);
    if (near)
        return error_set(r->error, -EINVAL, "%s:%d: there is no setting '%.64s'; did you mean '%s'?", r->path,
                r->line, key, near);
    return error_set(r->error, -EINVAL,
            "%s:%d: there is no setting '%.64s'; `shardd serve --help` lists them", r->path, r->line, key);
}

static int take_setting(struct config_reader *r, const char *section, const char *key, const char *value) {
    bool known = section[0] == '\0';
    for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++)
        known |= strcmp(section, sections[i]) == 0;
    if (!known)
        return refuse_section(r, section);
    const struct option_info *info = option_find(key, strlen(key), VERB_SERVE);
    if (!info || !option_is_in_file(info))
        return refuse_key(r, key);
    if (section[0] && strcmp(section, info->section) != 0)
        return error_set(r->error, -EINVAL, "%s:%d: '%s' belongs to section [%s], not to [%s]", r->path,
                r->line, info->name, info->section, section);
    char where[PATH_MAX + 16];
    snprintf(where, sizeof(where), "%s:%d", r->path, r->line);
    return options_set(r->options, info->id, OPTION_FILE, where, value, r->error);
}

static int on_setting(void *user, const char *section, const char *key, const char *value) {
    struct config_reader *r = user;
    if (r->failed)
        return 1;
    r->failed = take_setting(r, section, key, value);
    return 1;
}

int options_read_file(struct options *o, const char *path, struct error *e) {
    char *text = NULL;
    size_t bytes = 0;
    int rc = file_read(path, CONFIG_FILE_BYTES_MAX, &text, &bytes, e);
    if (rc < 0)
        return error_prefix(e, rc, "--config");
    if (strlen(text) != bytes) {
        free(text);
        return error_set(e, -EINVAL, "the configuration file %s holds a zero byte: is it text?", path);
    }
    struct config_reader r = {.options = o, .path = path, .text = text, .error = e};
    ini_use_stack = false;
    ini_max_line = ini_initial_alloc = CONFIG_LINE_MAX;
    ini_allow_multiline = false; /* an indented key is a key, not more of the line before */
    ini_stop_on_first_error = true;
    int line = ini_parse_stream(next_line, &r, on_setting, &r);
    if (r.failed)
        rc = r.failed;
    else if (line > 0)
        rc = error_set(e, -EINVAL, "%s:%d: neither 'name = value' nor '[section]' nor a comment", path, line);
    else if (line < 0)
        rc = error_set(e, -ENOMEM, "no memory to read the configuration file %s", path);
    free(text);
    return rc;
}
