/* words.c - a word to token ids by merging symbols, best pair first: byte pairs by
 * their rank, or scored pieces by their score. One table of byte strings holds what
 * may merge and what is a token; where words begin is the caller's business.
 */
#include <stdlib.h>
#include <string.h>

#include "fabric.h"

typedef struct entry {
    uint64_t hash; /* 0: the slot is free */
    const char *key;
    int32_t length;
    int32_t rank; /* of the merge with this key, -1: none */
    int32_t id;   /* of the token with this text, -1: none */
} entry;

struct fb_words {
    entry *slots; /* (mask + 1), at least half of them free */
    uint64_t mask;
    char *keys;
    int32_t joint;
    int32_t by_byte; /* a symbol that is no token falls back to its bytes */
    int32_t byte_ids[256];
};

/* Of one character at first; a symbol of length 0 became part of the one before it. */
typedef struct symbol {
    int32_t at, length, before, after;
} symbol;

typedef struct pair {
    int32_t rank, symbol, left, right; /* lengths of its sides when it was seen */
} pair;

typedef struct work {
    const fb_words *words;
    const char *text;
    symbol *symbols;
    pair *heap; /* the best pair first */
    int32_t count, pairs;
} work;

enum { ON_STACK = 64 }; /* symbols of a word that need no allocation */

static uint64_t fnv(uint64_t hash, const char *bytes, int32_t count)
{
    for (int32_t i = 0; i < count; i++)
        hash = (hash ^ (uint8_t)bytes[i]) * UINT64_C(1099511628211);
    return hash;
}

/* The entry of n + m bytes of a text, the joint between the two where there is one and m > 0; or the free slot of it,
 * whose hash is then left in *hash. */
static entry *find(const fb_words *w, const char *text, int32_t n, int32_t m, uint64_t *hash)
{
    char joint = (char)w->joint;
    int32_t gap = m > 0 && w->joint >= 0;
    uint64_t h = fnv(UINT64_C(14695981039346656037), text, n);
    h = fnv(fnv(h, &joint, gap), text + n, m);
    h ^= h >> 29;
    *hash = h += !h;
    for (uint64_t i = h & w->mask;; i = (i + 1) & w->mask) {
        entry *e = &w->slots[i];
        if (!e->hash || (e->hash == h && e->length == n + gap + m && !memcmp(e->key, text, (size_t)n) &&
                         (!gap || e->key[n] == joint) && !memcmp(e->key + n + gap, text + n, (size_t)m)))
            return e;
    }
}

static int32_t token(const fb_words *w, const char *text, int32_t n)
{
    uint64_t hash;
    const entry *e = find(w, text, n, 0, &hash);
    return e->hash ? e->id : -1;
}

fb_words *fb_words_new(const char *keys, int64_t key_bytes, const int32_t *lengths, const int32_t *ranks,
                       const int32_t *ids, int64_t count, int32_t joint, const int32_t *byte_ids)
{
    fb_words *w = calloc(1, sizeof *w);
    uint64_t slots = 16;
    int64_t left = key_bytes;
    if (!w || count < 0 || count > INT32_MAX || key_bytes < 0)
        goto fail;
    for (int64_t i = 0; i < count; left -= lengths[i++])
        if (lengths[i] < 0 || lengths[i] > left)
            goto fail;
    if (left)
        goto fail;
    while (slots < (uint64_t)count * 2)
        slots *= 2;
    w->mask = slots - 1;
    w->joint = joint;
    w->slots = calloc(slots, sizeof *w->slots);
    w->keys = malloc((size_t)key_bytes + 1);
    if (!w->slots || !w->keys)
        goto fail;
    if (key_bytes)
        memcpy(w->keys, keys, (size_t)key_bytes);
    w->by_byte = byte_ids != NULL;
    if (byte_ids)
        memcpy(w->byte_ids, byte_ids, sizeof w->byte_ids);
    const char *key = w->keys;
    for (int64_t i = 0; i < count; key += lengths[i++]) {
        uint64_t hash;
        entry *e = find(w, key, lengths[i], 0, &hash);
        if (!e->hash)
            *e = (entry){hash, key, lengths[i], -1, -1};
        if (e->rank < 0)
            e->rank = ranks[i];
        if (e->id < 0)
            e->id = ids[i];
    }
    return w;
fail:
    fb_words_free(w);
    return NULL;
}

void fb_words_free(fb_words *w)
{
    if (w) {
        free(w->slots);
        free(w->keys);
        free(w);
    }
}

static int better(pair a, pair b)
{
    return a.rank < b.rank || (a.rank == b.rank && a.symbol < b.symbol);
}

static void push(work *k, pair p)
{
    int32_t i = k->pairs++;
    for (; i > 0 && better(p, k->heap[(i - 1) / 2]); i = (i - 1) / 2)
        k->heap[i] = k->heap[(i - 1) / 2];
    k->heap[i] = p;
}

static pair pop(work *k)
{
    pair best = k->heap[0], last = k->heap[--k->pairs];
    int32_t i = 0;
    for (int32_t child = 1; child < k->pairs; child = 2 * i + 1) {
        if (child + 1 < k->pairs && better(k->heap[child + 1], k->heap[child]))
            child++;
        if (!better(k->heap[child], last))
            break;
        k->heap[i] = k->heap[child];
        i = child;
    }
    k->heap[i] = last;
    return best;
}

/* Notes that a symbol may merge with the one after it. */
static void look(work *k, int32_t left)
{
    if (left < 0 || k->symbols[left].after >= k->count)
        return;
    const symbol *a = &k->symbols[left], *b = &k->symbols[a->after];
    uint64_t hash;
    const entry *e = find(k->words, k->text + a->at, a->length, b->length, &hash);
    if (e->hash && e->rank >= 0)
        push(k, (pair){e->rank, left, a->length, b->length});
}

/* Every merge takes a symbol away and shows at most two new pairs, so the heap never holds 3 a symbol. */
static void merge(work *k)
{
    for (int32_t i = 0; i + 1 < k->count; i++)
        look(k, i);
    while (k->pairs > 0) {
        pair p = pop(k);
        symbol *a = &k->symbols[p.symbol];
        if (a->length != p.left || a->after >= k->count || k->symbols[a->after].length != p.right)
            continue; /* one of the two was merged meanwhile */
        symbol *b = &k->symbols[a->after];
        a->length += b->length;
        a->after = b->after;
        b->length = 0;
        if (a->after < k->count)
            k->symbols[a->after].before = p.symbol;
        look(k, a->before);
        look(k, p.symbol);
    }
}

static int32_t character(const char *text, int32_t room)
{
    uint8_t lead = (uint8_t)*text;
    int32_t n = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    return n < room ? n : room;
}

/* The ids of a symbol; without a token of its own those of its bytes, or of its characters as far as they are tokens. */
static int32_t emit(const fb_words *w, const char *text, int32_t n, int32_t *ids)
{
    int32_t count = 0, id = token(w, text, n);
    if (id >= 0) {
        ids[count++] = id;
    } else if (w->by_byte) {
        for (int32_t i = 0; i < n; i++)
            if (w->byte_ids[(uint8_t)text[i]] >= 0)
                ids[count++] = w->byte_ids[(uint8_t)text[i]];
    } else {
        for (int32_t i = 0, step; i < n; i += step) {
            step = character(text + i, n - i);
            if ((id = token(w, text + i, step)) >= 0)
                ids[count++] = id;
        }
    }
    return count;
}

int64_t fb_words_encode(const fb_words *w, const char *word, int64_t bytes, int32_t *ids, int64_t room)
{
    symbol symbols[ON_STACK];
    pair pairs[3 * ON_STACK];
    work k = {w, word, symbols, pairs, 0, 0};
    void *large = NULL;
    if (!w || bytes < 0 || bytes > INT32_MAX / 4 || room < bytes)
        return -1;
    int32_t n = (int32_t)bytes;
    if (n > ON_STACK) {
        large = malloc((size_t)n * (sizeof(symbol) + 3 * sizeof(pair)));
        if (!large)
            return -1;
        k.symbols = large;
        k.heap = (pair *)(k.symbols + n);
    }
    for (int32_t at = 0, step; at < n; at += step) {
        step = character(word + at, n - at);
        k.symbols[k.count] = (symbol){at, step, k.count - 1, k.count + 1};
        k.count++;
    }
    merge(&k);
    int64_t count = 0;
    for (int32_t i = 0; i < k.count; i = k.symbols[i].after)
        count += emit(w, word + k.symbols[i].at, k.symbols[i].length, ids + count);
    free(large);
    return count;
}
