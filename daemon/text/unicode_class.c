/* Classes of characters for the pre-tokenizer; tests/golden/tokenizer/classes.txt is what they have to be. */
#include "daemon/text/unicode_class.h"

#include <utf8proc.h>

/* Letters, marks and numbers that Unicode 15.1 and 16.0 assigned (DerivedGeneralCategory.txt); utf8proc 2.8
 * has them as unassigned. A newer utf8proc gives the same answers by itself: the table is asked only about
 * what it calls unassigned. */
static const struct {
    uint32_t first, last;
    enum unicode_class class;
} newer[] = {
        {0x897, 0x897, UNICODE_MARK},
        {0x1c89, 0x1c8a, UNICODE_LETTER},
        {0xa7cb, 0xa7cd, UNICODE_LETTER},
        {0xa7da, 0xa7dc, UNICODE_LETTER},
        {0x105c0, 0x105f3, UNICODE_LETTER},
        {0x10d40, 0x10d49, UNICODE_NUMBER},
        {0x10d4a, 0x10d65, UNICODE_LETTER},
        {0x10d69, 0x10d6d, UNICODE_MARK},
        {0x10d6f, 0x10d85, UNICODE_LETTER},
        {0x10ec2, 0x10ec4, UNICODE_LETTER},
        {0x10efc, 0x10efc, UNICODE_MARK},
        {0x11380, 0x11389, UNICODE_LETTER},
        {0x1138b, 0x1138b, UNICODE_LETTER},
        {0x1138e, 0x1138e, UNICODE_LETTER},
        {0x11390, 0x113b5, UNICODE_LETTER},
        {0x113b7, 0x113b7, UNICODE_LETTER},
        {0x113b8, 0x113c0, UNICODE_MARK},
        {0x113c2, 0x113c2, UNICODE_MARK},
        {0x113c5, 0x113c5, UNICODE_MARK},
        {0x113c7, 0x113ca, UNICODE_MARK},
        {0x113cc, 0x113d0, UNICODE_MARK},
        {0x113d1, 0x113d1, UNICODE_LETTER},
        {0x113d2, 0x113d2, UNICODE_MARK},
        {0x113d3, 0x113d3, UNICODE_LETTER},
        {0x113e1, 0x113e2, UNICODE_MARK},
        {0x116d0, 0x116e3, UNICODE_NUMBER},
        {0x11bc0, 0x11be0, UNICODE_LETTER},
        {0x11bf0, 0x11bf9, UNICODE_NUMBER},
        {0x11f5a, 0x11f5a, UNICODE_MARK},
        {0x13460, 0x143fa, UNICODE_LETTER},
        {0x16100, 0x1611d, UNICODE_LETTER},
        {0x1611e, 0x1612f, UNICODE_MARK},
        {0x16130, 0x16139, UNICODE_NUMBER},
        {0x16d40, 0x16d6c, UNICODE_LETTER},
        {0x16d70, 0x16d79, UNICODE_NUMBER},
        {0x18cff, 0x18cff, UNICODE_LETTER},
        {0x1ccf0, 0x1ccf9, UNICODE_NUMBER},
        {0x1e5d0, 0x1e5ed, UNICODE_LETTER},
        {0x1e5ee, 0x1e5ef, UNICODE_MARK},
        {0x1e5f0, 0x1e5f0, UNICODE_LETTER},
        {0x1e5f1, 0x1e5fa, UNICODE_NUMBER},
        {0x2ebf0, 0x2ee5d, UNICODE_LETTER},
};

static enum unicode_class newer_class_of(uint32_t code_point) {
    size_t low = 0, high = sizeof(newer) / sizeof(newer[0]);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code_point > newer[middle].last)
            low = middle + 1;
        else if (code_point < newer[middle].first)
            high = middle;
        else
            return newer[middle].class;
    }
    return UNICODE_OTHER;
}

static enum unicode_class ascii_class_of(uint32_t c) {
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
        return UNICODE_LETTER;
    if (c >= '0' && c <= '9')
        return UNICODE_NUMBER;
    return c == ' ' || (c >= '\t' && c <= '\r') ? UNICODE_SPACE : UNICODE_OTHER;
}

enum unicode_class unicode_class_of(uint32_t code_point) {
    if (code_point < 0x80)
        return ascii_class_of(code_point);
    switch (utf8proc_category((utf8proc_int32_t)code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return UNICODE_LETTER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return UNICODE_MARK;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return UNICODE_NUMBER;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return UNICODE_SPACE;
    case UTF8PROC_CATEGORY_CN:
        return newer_class_of(code_point);
    default:
        return code_point == 0x85 ? UNICODE_SPACE : UNICODE_OTHER;
    }
}
