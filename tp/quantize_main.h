/* quantize_main.h - the verb `quantize` of shardd-checkpoint. */
#pragma once

/* argv[0] is the verb. Returns the exit status. */
int run_quantize(int argc, char **argv);
