/* session.c - see session.h. */
#include "launcher/session.h"

#include "launcher/verbs.h"

#include <signal.h>
#include <stdio.h>

static void on_interrupt(int signal_number) {
    (void)signal_number;
    client_interrupt();
}

int session_open(struct session *s, const struct options *o) {
    *s = (struct session){0};
    /* No SA_RESTART: a read of the prompt ends as well. */
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
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
