/* pack_verb.h - `shardd pack`: makes the packed file of a model beforehand. Called by checkpoint_main.c only. */
#pragma once

/* argv[0] is "pack". An exit status. */
int pack_main(int argc, char **argv);
