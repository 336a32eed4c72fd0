/* The threads that work at one call.
 *
 * All go through the same steps and wait for each other in between. Each has its share of a step's
 * items, and then takes what the others have not begun, since a core may be slower than another:
 * virtual ones have neighbours.
 *
 * After a block there may be more of them or fewer, as other calls have ended or begun. A new one is
 * let in when it is at work on a core, so that nobody ever waits for one that has none.
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

/* A thread comes, and is ready; then it is let in, or told to leave. */
enum { ABSENT, COMING, READY, INSIDE, LEAVING };

struct Member {
    Call *call;
    Team *team;
    int rank, first_block;
    atomic_int standing;
    int has_thread;
    pthread_t thread;
    cpu_set_t cores; /* on which it may be, once it has begun */
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
    if (CPU_COUNT(&member->cores)) sched_setaffinity(0, sizeof member->cores, &member->cores);
    int coming = COMING;
    atomic_compare_exchange_strong(&member->standing, &coming, READY);
    while (atomic_load(&member->standing) == READY) sched_yield();
    if (atomic_load(&member->standing) == INSIDE) member->team->work(member);
    atomic_store(&member->standing, ABSENT);
    return NULL;
}

static int has_left(const Member *member) { return atomic_load(&member->standing) == LEAVING; }

static void end_thread(Member *member) {
    if (member->has_thread) pthread_join(member->thread, NULL);
    member->has_thread = 0;
}

/* As many places behind the core that this runs on, among those that the process may have. */
static cpu_set_t core_behind(const cpu_set_t *cores, int n_places) {
    int core = sched_getcpu();
    while (n_places)
        if (CPU_ISSET(core = (core + 1) % CPU_SETSIZE, cores)) n_places--;
    cpu_set_t found;
    CPU_ZERO(&found);
    CPU_SET(core, &found);
    return found;
}

/* A scheduler may begin a thread on the core of the one that makes it, and leave both there for
 * longer than a call lasts. So each begins on a core of its own, where that is to be had. */
static int begin_thread(Member *one, int n_places) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return 0;
    CPU_ZERO(&one->cores);
    if (!sched_getaffinity(0, sizeof one->cores, &one->cores)) {
        const cpu_set_t core = core_behind(&one->cores, n_places);
        pthread_attr_setaffinity_np(&attributes, sizeof core, &core);
    }
    const int has_begun = !pthread_create(&one->thread, &attributes, join_in, one);
    pthread_attr_destroy(&attributes);
    return has_begun || !pthread_create(&one->thread, NULL, join_in, one);
}

/* It is asked for again after the next block where the system has no thread left. */
static void call_in(Member *one, int n_places) {
    end_thread(one);
    atomic_store(&one->standing, COMING);
    one->has_thread = begin_thread(one, n_places);
    if (!one->has_thread) atomic_store(&one->standing, ABSENT);
}

static void send_away(Member *one) {
    const int standing = atomic_load(&one->standing);
    if (standing != ABSENT && standing != LEAVING) atomic_store(&one->standing, LEAVING);
}

static void resize(const Member *member, int next_block) {
    Team *team = member->team;
    const int n = wanted_members(team), n_all = team->cores->n_all;
    if (team->n_members > n) team->n_members = n;
    for (int rank = n; rank < n_all; rank++) send_away(&team->members[rank]);
    for (int rank = team->n_members; rank < n; rank++) {
        Member *one = &team->members[rank];
        const int standing = atomic_load(&one->standing);
        if (standing == ABSENT) call_in(one, rank - member->rank);
        if (standing == READY && rank == team->n_members) {
            one->first_block = next_block;
            team->n_members++;
        }
    }
}

static void regroup(Member *member, int next_block) {
    Team *team = member->team;
    if (!arrive(team)) return;
    const int n_before = team->n_members;
    resize(member, next_block);
    const int n_after = team->n_members; /* the others may change it once they go: see below */
    let_go(team);
    /* New ones begin now: earlier they would take this meeting for their next. Where there are new
     * ones, the others cannot meet again without them; where this one has been sent away, they can. */
    for (int rank = n_before; rank < n_after; rank++)
        atomic_store(&team->members[rank].standing, INSIDE);
}

static void run_team(Team *team, Call *call) {
    const int n_all = team->cores->n_all;
    for (int rank = 0; rank < n_all; rank++)
        team->members[rank] = (Member){.call = call, .team = team, .rank = rank};
    atomic_fetch_add(&team->cores->n_calls, 1);
    atomic_fetch_add(&team->cores->n_inside, 1);
    team->n_members = 1;
    resize(&team->members[0], 0);
    team->work(&team->members[0]);
    atomic_fetch_sub(&team->cores->n_inside, 1);
    for (int rank = team->n_members; rank < n_all; rank++) send_away(&team->members[rank]);
    for (int rank = 1; rank < n_all; rank++) end_thread(&team->members[rank]);
}

#endif
