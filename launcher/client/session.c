/* session.c - see session.h. */
#include "launcher/client/session.h"

#include "launcher/client/interrupt.h"
#include "launcher/verbs.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

int session_open(struct session *s, const struct options *o) {
    *s = (struct session){0};
    int rc = interrupt_catch();
    if (rc < 0) {
        fprintf(stderr, "shardd: cannot take signals: %s\n", strerror(-rc));
        return EXIT_FAILED;
    }
    signal(SIGPIPE, SIG_IGN);
    const char *address = options_text(o, OPT_SERVER);
    if (options_given(o, OPT_MODEL) || options_given(o, OPT_CONFIG)) {
        int code = private_service_start(&s->service, o);
        if (code != 0)
            return code;
        address = s->service.address;
    }
    struct error e;
    if (client_open(address, &s->client, &e) < 0) {
        fprintf(stderr, "shardd: %s\n", e.text);
        private_service_stop(&s->service);
        return EXIT_USAGE;
    }
    return 0;
}

void session_close(struct session *s) {
    s->client = client_close(s->client); /* first: a service waits for its peers to hang up */
    private_service_stop(&s->service);
}
