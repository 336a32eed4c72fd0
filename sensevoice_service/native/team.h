/* The threads that work at one call.
 *
 * All go through the same steps and wait for each other in between. Each has its share of a step's
 * items, and then takes what the others have not begun, since a core may be slower than another:
 * virtual ones have neighbours.
 *
 * After a block there may be more of them or fewer, as other calls have ended or begun.
 */
#ifndef SENSEVOICE_TEAM_H
#define SENSEVOICE_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "encoder.h"

typedef struct Call Call;
typedef struct Member Member;

typedef struct {
    Cores *cores;
    int has_followers;
    uint32_t n_calls_before; /* of the engine, when the call's turn came */
    void (*work)(Member *);
    Member *members; /* as many as the cores */
    int n_members;
    atomic_int n_arrived, n_meetings;
} Team;

struct Member {
    Call *call;
    Team *team;
    int rank, first_block, n_meetings_before;
    int has_left, has_thread;
    pthread_t thread;
    _Alignas(64) atomic_int n_taken; /* of its share of this step, by whomever */
};

typedef struct {
    int first, last; /* the last is not in it */
} Share;

static inline Share share_of(const Member *member, int n_items) {
    const int64_t rank = member->rank, n_members = member->team->n_members;
    return (Share){(int)(n_items * rank / n_members), (int)(n_items * (rank + 1) / n_members)};
}

/* The items of a step, one after the other. */
typedef struct {
    Member *member;
    int n_items, next, last; /* of the piece that has been taken */
} Items;

static inline Items items_of(Member *member, int n_items) {
    return (Items){.member = member, .n_items = n_items};
}

static void take_piece(Items *items) {
    enum { PIECES = 8 }; /* of a share */
    Team *team = items->member->team;
    const int n_members = team->n_members;
    for (int i = 0; i < n_members; i++) {
        Member *owner = &team->members[(items->member->rank + i) % n_members];
        const Share share = share_of(owner, items->n_items);
        const int n_all = share.last - share.first;
        const int n_piece = n_members == 1 ? n_all : (n_all + PIECES - 1) / PIECES;
        const int first = share.first + atomic_fetch_add(&owner->n_taken, n_piece);
        if (first >= share.last) continue;
        items->next = first;
        items->last = first + n_piece < share.last ? first + n_piece : share.last;
        return;
    }
}

/* -1 where none is left. */
static inline int take_item(Items *items) {
    if (items->next == items->last) take_piece(items);
    return items->next < items->last ? items->next++ : -1;
}

/* Waits for the others, then gives 0. The last one to come gets 1 at once: it alone may change the
 * team, and has to let the others go. */
static inline int arrive(Team *team) {
    enum { SPINS = 4096 }; /* a microsecond or two; then others may have the core */
    const int n_members = team->n_members, n_meetings = atomic_load(&team->n_meetings);
    if (atomic_fetch_add(&team->n_arrived, 1) == n_members - 1) return 1;
    for (int spin = 0; atomic_load(&team->n_meetings) == n_meetings; spin++)
        if (spin > SPINS) sched_yield();
    return 0;
}

static inline void let_go(Team *team) {
    for (int rank = 0; rank < team->n_members; rank++)
        atomic_store(&team->members[rank].n_taken, 0);
    atomic_store(&team->n_arrived, 0);
    atomic_fetch_add(&team->n_meetings, 1);
}

static inline void wait_for_all(Member *member) {
    if (arrive(member->team)) let_go(member->team);
}

/* ---- how many there are ---- */

/* A call that others follow at once is not alone until one of them, beside itself, has begun. */
static int wanted_members(const Team *team) {
    Cores *cores = team->cores;
    const uint32_t n_begun = atomic_load(&cores->n_calls) - team->n_calls_before;
    if (team->has_followers && n_begun < 2) return cores->n_each;
    const int n_shared = cores->n_all / atomic_load(&cores->n_inside);
    return n_shared > cores->n_each ? n_shared : cores->n_each;
}

static void *join_in(void *argument) {
    Member *member = argument;
    pthread_setname_np(pthread_self(), "encoder");
    while (atomic_load(&member->team->n_meetings) == member->n_meetings_before) sched_yield();
    member->team->work(member);
    return NULL;
}

static void end_thread(Member *member) {
    if (member->has_thread) pthread_join(member->thread, NULL);
    member->has_thread = 0;
}

/* It begins when the others are let go. 0 where the system has no thread left. */
static int add_member(Team *team, int first_block) {
    Member *one = &team->members[team->n_members];
    end_thread(one);
    one->has_left = 0;
    one->first_block = first_block;
    one->n_meetings_before = atomic_load(&team->n_meetings);
    one->has_thread = !pthread_create(&one->thread, NULL, join_in, one);
    team->n_members += one->has_thread;
    return one->has_thread;
}

static void resize(Team *team, int next_block) {
    const int n = wanted_members(team);
    while (team->n_members > n) team->members[--team->n_members].has_left = 1;
    while (team->n_members < n && add_member(team, next_block)) continue;
}

static void regroup(Member *member, int next_block) {
    if (arrive(member->team)) {
        resize(member->team, next_block);
        let_go(member->team);
    }
}

static void run_team(Team *team, Call *call) {
    const int n_all = team->cores->n_all;
    for (int rank = 0; rank < n_all; rank++)
        team->members[rank] = (Member){.call = call, .team = team, .rank = rank};
    atomic_fetch_add(&team->cores->n_calls, 1);
    atomic_fetch_add(&team->cores->n_inside, 1);
    team->n_members = 1;
    resize(team, 0);
    let_go(team);
    team->work(&team->members[0]);
    atomic_fetch_sub(&team->cores->n_inside, 1);
    for (int rank = 1; rank < n_all; rank++) end_thread(&team->members[rank]);
}

#endif
