/* SenseVoiceSmall's encoder and CTC head on a CPU: linear layers in int8 and attention in 16 bits, or
 * all in bf16 or in fp32.
 *
 * Utterances lie one behind the other in one matrix of frames, each from an even row on; a row
 * behind its last frame holds nothing that another row reads. Products write bare sums;
 * what they stand for is found where they are read next, so that no step goes through memory for
 * its own sake.
 */
#include "encoder.h"

#include <stdlib.h>
#include <string.h>

#include "activations.h"
#include "attention.h"
#include "call.h"
#include "tiles.h"
#if LINEAR_IS_INT8
#include "linear_int8.h"
#else
#include "linear_halves.h"
#endif

/* ---- products ---- */

/* Of 32 rows, some steps along the sum. Meanwhile the next panel is called ahead, a share of it
 * for each block of rows. */
static Operands operands(const Call *call, const Linear *layer, int panel, int row, int step,
                         int n_steps) {
    const int n_all = layer->n_in / STEP_VALUES;
    const size_t row_tile_bytes = (size_t)n_all * STEP_BYTES, panel_bytes = 2 * row_tile_bytes;
    const char *rows = (const char *)call->input.tiles + row / TILE_ROWS * row_tile_bytes;
    const char *weights = (const char *)layer->panels + panel * panel_bytes + 2 * step * STEP_BYTES;
    const int n_shares = (call->n_rows + 31) / 32 * PAIRS_OF_PARTS;
    const int lines = (2 * STEP_BYTES / LINE_BYTES + n_shares - 1) / n_shares;
    return (Operands){
        .rows = rows + step * STEP_BYTES,
        .row_tile_bytes = row_tile_bytes,
        .n_rows = call->n_rows - row < 32 ? call->n_rows - row : 32,
        .n_steps = n_steps,
        .panel = weights,
        .adds = step > 0,
        .ahead = weights + panel_bytes +
                 (size_t)row / 32 * n_steps * PAIRS_OF_PARTS * lines * LINE_BYTES,
        .lines_ahead = lines,
    };
}

static void multiply_panel(const Call *call, const Linear *layer, int panel, int step, int end) {
    const int most = call->n_rows > 32 ? PANEL_STEPS : ALL_STEPS;
    for (; step < end; step += most)
        for (int row = 0; row < call->n_rows; row += 32)
            product_linear(operands(call, layer, panel, row, step, smaller(most, end - step)),
                           sums_of(call, panel, row));
}

static void multiply(Member *member, const Linear *layer) {
    const int n_steps = layer->n_in / STEP_VALUES;
    for (int step = 0; step < n_steps; step += MOST_STEPS) {
        Items panels = items_of(member, layer->n_out / PANEL_COLUMNS);
        for (int panel; (panel = take_item(&panels)) >= 0;)
            multiply_panel(member->call, layer, panel, step, smaller(step + MOST_STEPS, n_steps));
        wait_for_all(member);
    }
}

/* One block of it, to a place of its own. */
static void multiply_block(const Call *call, const Linear *layer, int panel, int row, Sum *out) {
    const int n_steps = layer->n_in / STEP_VALUES;
    for (int step = 0; step < n_steps; step += MOST_STEPS)
        product_linear(
            operands(call, layer, panel, row, step, smaller(MOST_STEPS, n_steps - step)), out);
}

/* What a row of the last product stands for. */
static void read_row(const Call *call, const Linear *layer, int row, float *out) {
    for (int column = 0; column < layer->n_out; column += PANEL_COLUMNS)
        read_sums(sums_of(call, column / PANEL_COLUMNS, row), layer, column, call->input, row,
                  out + column);
}

/* ---- steps from product to product, a row at a time ---- */

static const Utterance *utterance_of(const Call *call, int row) {
    const Utterance *one = call->utterances;
    while (row >= one->first_row + rows_of(one->n_frames)) one++;
    return one;
}

static void norm_and_put(Call *call, const float *x, Norm norm, int row) {
    float normed[norm.size];
    norm_row(x, norm, normed);
    put_row(normed, norm.size, call->input, row);
}

static void begin(Member *member, Norm norm) {
    Call *call = member->call;
    Items rows = items_of(member, call->n_rows);
    for (int row; (row = take_item(&rows)) >= 0;)
        norm_and_put(call, call->x + (size_t)row * norm.size, norm, row);
    wait_for_all(member);
}

/* Of a head's queries, keys and values in two frames. */
static void choose_units(const Call *call, const Utterance *one, int head, int frame,
                         const float *query, float per_unit[3][2]) {
    const Network *network = call->network;
    const int size = network->size, head_size = head_size_of(network);
    const float most = most_of_keys(head_room_of(network));
    const float most_of[] = {most, most, MOST_OF_VALUES};
    float *const units[] = {call->query_units, call->key_units, call->value_units};
    for (int kind = 0; kind < 3; kind++)
        for (int i = 0; i < 2; i++) {
            const float *values = query + (3 * i + kind) * size;
            per_unit[kind][i] = per_unit_of(values, head_size, most_of[kind]);
            if (HALVES_ARE_WHOLE)
                units_of(call, units[kind], one, head)[frame + i] = 1.0f / per_unit[kind][i];
        }
}

/* Two frames' queries, keys and values to where attention wants them. */
static void part_pair(Call *call, const Utterance *one, int frame, const float *triples) {
    const Network *network = call->network;
    const int size = network->size, head_size = head_size_of(network);
    const int room = head_room_of(network), n_padded = keys_of(one->n_frames);
    const int has_queries = frame < padded(one->n_frames, TILE_ROWS);
    float spare[3][2][32], per_unit[3][2];
    for (int head = 0; head < network->n_heads; head++) {
        Half *queries = head_of(call, call->query_tiles, one, head);
        Half *keys = head_of(call, call->key_panels, one, head);
        Half *values = head_of(call, call->value_panels, one, head);
        const float *query = triples + head * head_size;
        choose_units(call, one, head, frame, query, per_unit);
        for (int step = 0; step < room / 32; step++) {
            const float *pieces[3][2];
            for (int kind = 0; kind < 3; kind++)
                for (int i = 0; i < 2; i++)
                    pieces[kind][i] = piece_of(query + (3 * i + kind) * size, 32 * step, head_size,
                                               spare[kind][i]);
            if (has_queries) put_queries(pieces[0], per_unit[0], frame, step, room, queries);
            put_keys(pieces[1], per_unit[1], frame, step, room, keys);
            put_values(pieces[2], per_unit[2], frame, step, n_padded, values);
        }
    }
}

/* Behind the last frame there are zeros, as far as panels reach. */
static void part(Member *member, const Linear *layer) {
    Call *call = member->call;
    const int size = call->network->size, width = 3 * size;
    Items pairs = items_of(member, call->n_rows / 2);
    float triples[2 * width];
    for (int pair; (pair = take_item(&pairs)) >= 0;) {
        const Utterance *one = utterance_of(call, 2 * pair);
        const int first = 2 * pair - one->first_row, n_there = one->n_frames - first;
        if (n_there <= 0) continue;
        for (int i = 0; i < 2 && i < n_there; i++) {
            float *values = call->values + (size_t)(2 * pair + i) * size;
            read_row(call, layer, 2 * pair + i, triples + i * width);
            memcpy(values, triples + i * width + 2 * size, sizeof(float) * size);
        }
        if (n_there == 1) memset(triples + width, 0, sizeof(float) * width);
        part_pair(call, one, first, triples);
        if (n_there > 2) continue;
        memset(triples, 0, sizeof triples);
        for (int frame = first + 2; frame < keys_of(one->n_frames); frame += 2)
            part_pair(call, one, frame, triples);
    }
    wait_for_all(member);
}

static void put_context(Member *member) {
    Call *call = member->call;
    const int size = call->network->size;
    Items rows = items_of(member, call->n_rows);
    for (int row; (row = take_item(&rows)) >= 0;)
        put_row(call->context + (size_t)row * size, size, call->input, row);
    wait_for_all(member);
}

/* The FSMN memory of one frame: neighbours' values by the taps, added to `out`. */
static void remember(const Call *call, const float *taps, int row, float *out) {
    const Utterance *one = utterance_of(call, row);
    const int size = call->network->size, half = call->network->n_taps / 2;
    const int before = row - one->first_row, behind = one->n_frames - 1 - before;
    const int first = before < half ? -before : -half, last = behind < half ? behind : half;
    for (int column = 0; column < size; column += 2 * LANES) {
        Lanes left = LANES_AT(out, column), right = LANES_AT(out, column + LANES);
        for (int tap = first; tap <= last; tap++) {
            const float *weights = taps + (tap + half) * size + column;
            const float *values = call->values + (size_t)(row + tap) * size + column;
            left += LANES_AT(weights, 0) * LANES_AT(values, 0);
            right += LANES_AT(weights, LANES) * LANES_AT(values, LANES);
        }
        memcpy(out + column, &left, sizeof left);
        memcpy(out + column + LANES, &right, sizeof right);
    }
}

static void add_attended(Member *member, const Block *block) {
    Call *call = member->call;
    const int size = call->network->size;
    Items rows = items_of(member, call->n_rows);
    float attended[size];
    for (int row; (row = take_item(&rows)) >= 0;) {
        float *residual = call->residual + (size_t)row * size;
        read_row(call, &block->out, row, attended);
        remember(call, block->taps, row, attended);
        for (int i = 0; i < size; i++)
            residual[i] = attended[i] + (block->changes_width ? 0.0f : residual[i]);
        norm_and_put(call, residual, block->norm2, row);
    }
    wait_for_all(member);
}

static void rectify(Member *member, const Linear *layer) {
    Call *call = member->call;
    const int n = layer->n_out;
    Items rows = items_of(member, call->n_rows);
    float values[n];
    for (int row; (row = take_item(&rows)) >= 0;) {
        read_row(call, layer, row, values);
        for (int i = 0; i < n; i++) values[i] = values[i] > 0.0f ? values[i] : 0.0f;
        put_row(values, n, call->input, row);
    }
    wait_for_all(member);
}

/* The end of a block: what comes next is a norm, and between the parts of the network two. Here the
 * members wait for each other in `regroup`. */
static void add_forwarded(Member *member, const Linear *layer, const Norm *between, Norm norm,
                          float *hidden) {
    Call *call = member->call;
    const int size = call->network->size;
    Items rows = items_of(member, call->n_rows);
    float forwarded[size];
    for (int row; (row = take_item(&rows)) >= 0;) {
        float *residual = call->residual + (size_t)row * size;
        read_row(call, layer, row, forwarded);
        for (int i = 0; i < size; i++) forwarded[i] += residual[i];
        if (between) norm_row(forwarded, *between, residual);
        else memcpy(residual, forwarded, sizeof forwarded);
        norm_and_put(call, residual, norm, row);
        if (hidden) norm_row(residual, norm, hidden + (size_t)row * size);
    }
}

/* ---- the CTC head ---- */

static void write_logits(Member *member) {
    Call *call = member->call;
    const Linear *layer = &call->network->ctc;
    Items panels = items_of(member, layer->n_out / PANEL_COLUMNS);
    Sum sums[32 * PANEL_COLUMNS] __attribute__((aligned(64)));
    for (int panel; (panel = take_item(&panels)) >= 0;)
        for (int row = 0; row < call->n_rows; row++) {
            if (row % 32 == 0) multiply_block(call, layer, panel, row, sums);
            read_sums(sums + row % 32 * PANEL_COLUMNS, layer, panel * PANEL_COLUMNS, call->input,
                      row, call->logits + (size_t)row * layer->n_out + panel * PANEL_COLUMNS);
        }
    wait_for_all(member);
}

/* Of equal ones the first id wins. */
static int is_better(float value, int32_t id, float other, int32_t other_id) {
    return value > other || (value == other && id < other_id);
}

static void keep_best(const float *values, int first_id, float *best, int32_t *best_id) {
    float high = values[0];
    for (int i = 0; i < PANEL_COLUMNS; i++) high = values[i] > high ? values[i] : high;
    if (!is_better(high, first_id, *best, *best_id)) return;
    int at = 0;
    while (at < PANEL_COLUMNS - 1 && values[at] != high) at++;
    *best = high;
    *best_id = first_id + at;
}

/* Each member finds the best of its panels. */
static void find_best(Member *member) {
    Call *call = member->call;
    const Linear *layer = &call->network->ctc;
    Items panels = items_of(member, layer->n_out / PANEL_COLUMNS);
    const size_t n_rows = call->n_rows, mine = member->rank * n_rows;
    Sum sums[32 * PANEL_COLUMNS] __attribute__((aligned(64)));
    float values[PANEL_COLUMNS];
    for (size_t row = 0; row < n_rows; row++) {
        call->best[mine + row] = -FLT_MAX;
        call->best_ids[mine + row] = 0; /* of logits that are no numbers none is the best */
    }
    for (int panel; (panel = take_item(&panels)) >= 0;)
        for (size_t row = 0; row < n_rows; row++) {
            if (row % 32 == 0) multiply_block(call, layer, panel, row, sums);
            read_sums(sums + row % 32 * PANEL_COLUMNS, layer, panel * PANEL_COLUMNS, call->input,
                      row, values);
            keep_best(values, panel * PANEL_COLUMNS, &call->best[mine + row],
                      &call->best_ids[mine + row]);
        }
    wait_for_all(member);
    if (member->rank) return;
    for (size_t row = 0; row < n_rows; row++) {
        const float *best = call->best + row;
        const int32_t *ids = call->best_ids + row;
        size_t winner = 0;
        for (size_t at = n_rows; at < n_rows * call->team.n_members; at += n_rows)
            if (is_better(best[at], ids[at], best[winner], ids[winner])) winner = at;
        call->ids[row] = ids[winner];
    }
}

/* ---- the network ---- */

static void run_block(Member *member, int index) {
    const Network *network = member->call->network;
    const Block *block = &network->blocks[index];
    const int is_last = index + 1 == network->n_blocks;
    const int is_last_main = index + 1 == network->n_main_blocks;
    multiply(member, &block->query_key_value);
    part(member, &block->query_key_value);
    attend(member);
    put_context(member);
    multiply(member, &block->out);
    add_attended(member, block);
    multiply(member, &block->forward1);
    rectify(member, &block->forward1);
    multiply(member, &block->forward2);
    add_forwarded(member, &block->forward2, is_last_main ? &network->after_norm : NULL,
                  is_last ? network->last_norm : network->blocks[index + 1].norm1,
                  is_last ? member->call->hidden : NULL);
}

static void run(Member *member) {
    const Call *call = member->call;
    const Network *network = call->network;
    tiles_begin();
    if (!member->first_block) begin(member, network->blocks[0].norm1);
    for (int i = member->first_block; i < network->n_blocks && !has_left(member); i++) {
        run_block(member, i);
        regroup(member, i + 1);
    }
    if (call->logits && !has_left(member)) write_logits(member);
    if (call->ids && !has_left(member)) find_best(member);
    tiles_end();
}

/* ---- a call's memory ---- */

typedef struct {
    char *start; /* NULL: it is only counted */
    size_t n_bytes;
} Memory;

static void *take(Memory *memory, size_t n_bytes) {
    char *taken = memory->start ? memory->start + memory->n_bytes : NULL;
    memory->n_bytes += (n_bytes + 63) / 64 * 64;
    return taken;
}

/* Takes all that a call needs, and says how many bytes that is. */
static size_t lay_out(Call *call, char *start) {
    Memory memory = {.start = start};
    const Network *network = call->network;
    const size_t rows = padded(call->n_rows, TILE_ROWS), size = network->size;
    const size_t members = call->team.cores->n_all, keys = (size_t)call->n_keys * network->n_heads;
    const size_t in_heads = keys * head_room_of(network) * PARTS;
    const size_t in_units = HALVES_ARE_WHOLE ? keys : 0;
    const size_t in_scores = members * QUERIES * call->n_longest;
    const int widest_out = larger(network->n_hidden, 3 * network->size);
    const int widest_in = larger(network->blocks[0].query_key_value.n_in,
                                 padded(larger(network->n_hidden, network->size), SUM_PADDING));
    call->team.members = take(&memory, sizeof(Member) * members);
    call->utterances = take(&memory, sizeof(Utterance) * call->n_utterances);
    call->residual = take(&memory, sizeof(float) * rows * size);
    call->context = take(&memory, sizeof(float) * rows * size);
    call->values = take(&memory, sizeof(float) * rows * size);
    call->sums = take(&memory, sums_bytes(rows, widest_out));
    call->query_tiles = take(&memory, sizeof(Half) * in_heads);
    call->key_panels = take(&memory, sizeof(Half) * in_heads);
    call->value_panels = take(&memory, sizeof(Half) * in_heads);
    call->query_units = take(&memory, sizeof(float) * in_units);
    call->key_units = take(&memory, sizeof(float) * in_units);
    call->value_units = take(&memory, sizeof(float) * in_units);
    call->input.tiles = take(&memory, rows / TILE_ROWS * (widest_in / STEP_VALUES) * STEP_BYTES);
    call->input.scales = take(&memory, sizeof(float) * rows);
    call->input.zeros = take(&memory, sizeof(float) * rows);
    call->scores = take(&memory, sizeof(float) * in_scores);
    call->shares = take(&memory, sizeof(Half) * in_scores * PARTS);
    call->best = take(&memory, sizeof(float) * members * rows);
    call->best_ids = take(&memory, sizeof(int32_t) * members * rows);
    return memory.n_bytes;
}

int sensevoice_begin(void) { return tiles_permitted(); }

int sensevoice_weight_parts(void) { return LINEAR_IS_INT8 ? 0 : PARTS; }

int sensevoice_highest_weight_sum(void) { return HIGHEST_WEIGHT_SUM; }

int sensevoice_encode(const Network *network, Cores *cores, const float *x, const int32_t *n_frames,
                      int n_utterances, int has_followers, uint32_t n_calls_before,
                      int32_t *ids, float *hidden, float *logits) {
    Call call = {.network = network, .n_utterances = n_utterances};
    call.team = (Team){.cores = cores,
                       .has_followers = has_followers,
                       .n_calls_before = n_calls_before,
                       .work = run};
    for (int i = 0; i < n_utterances; i++) {
        call.n_rows += rows_of(n_frames[i]);
        call.n_keys += keys_of(n_frames[i]);
        call.n_longest = larger(call.n_longest, keys_of(n_frames[i]));
    }
    char *memory = aligned_alloc(64, lay_out(&call, NULL));
    if (!memory) return 0;
    lay_out(&call, memory);
    for (int i = 0, row = 0, key = 0; i < n_utterances; i++) {
        call.utterances[i] = (Utterance){row, n_frames[i], key};
        row += rows_of(n_frames[i]);
        key += keys_of(n_frames[i]);
    }
    call.x = x;
    call.ids = ids;
    call.hidden = hidden;
    call.logits = logits;
    run_team(&call.team, &call);
    free(memory);
    return 1;
}
