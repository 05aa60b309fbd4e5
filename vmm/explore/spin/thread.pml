/*
 * The counter-example of the KVM_EOIFD thread, for spin: irqfd, eoifd, deassign, and another irqfd that finds no
 * source id. `vintx bench` runs it beside scene counter-example of `vintx explore thread`, which explores the code of
 * vmm/kernel itself; here that code is told once more, a statement for each place where somebody else may go first.
 *
 *   spin -a thread.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan
 *
 * -DFOLLOWS   an eoifd goes with its irqfd (else it keeps the source id, as the posted patch has it)
 * -DAT_ONCE   each call by a thread of its own (else one thread makes them, in any order)
 * -DIDS=n     source ids that there are to give out
 */

#ifndef IDS
#define IDS 1
#endif
#define IRQFDS 2                /* on e1 and on e3 */
#define NONE   255

bool used[IDS];                 /* the bitmap of source ids */
byte users[IDS];                /* references to each */
byte source[IRQFDS] = NONE;     /* of each irqfd, NONE: it has none */
bool listed[IRQFDS];
bool waiting[IRQFDS];           /* a wait entry is in the eventfd's queue */
bool queued[IRQFDS];            /* its shutdown is in the clean-up queue */
bool running[IRQFDS];
byte bound = NONE;              /* the eoifd's source */
bool told;                      /* the eoifd's notifier is registered */
bool items, ids, eois;          /* locks: irqfds.lock, the bitmap's, eoifds.lock */

inline take(lock) { atomic { !lock -> lock = true } }
inline leave(lock) { lock = false }

inline put_source(id) {
    take(ids);
    users[id]--;
    if
    :: users[id] == 0 -> used[id] = false
    :: else
    fi;
    leave(ids)
}

inline assign(fd) {
    take(ids);
    id = 0;
    do
    :: id < IDS && used[id] -> id++
    :: else -> break
    od;
    if
    :: id == IDS ->
        /* EFAULT is precise only if an irqfd has the ids, or had them and is being shut down */
        assert(source[0] != NONE || source[1] != NONE || queued[0] || running[0]);
        leave(ids)
    :: else ->
        used[id] = true;
        users[id] = 1;
        source[fd] = id;
        leave(ids);
        take(items);
        if
        :: listed[fd] ->        /* EBUSY */
            leave(items);
            source[fd] = NONE;
            put_source(id)
        :: else ->
            listed[fd] = true;
            leave(items);
            waiting[fd] = true
        fi
    fi
}

inline deassign(fd) {
    take(items);
    if
    :: listed[fd] ->
        listed[fd] = false;
        queued[fd] = true
    :: else
    fi;
    leave(items);
    !queued[fd] && !running[fd]         /* flush_workqueue */
}

inline assign_eoifd(fd) {
    take(items);
    if
    :: listed[fd] ->
        id = source[fd];
        take(ids);
        users[id]++;
        leave(ids);
        take(eois);                     /* inside, or it is born an orphan */
        bound = id;
        leave(eois);
        told = true;
        leave(items)
    :: else -> leave(items)             /* ENOENT */
    fi
}

active proctype cleanup() {
    byte fd, id;
end:
    do
    :: atomic { queued[0] -> queued[0] = false; running[0] = true; fd = 0 };
        waiting[fd] = false;            /* eventfd_ctx_remove_wait_queue */
        id = source[fd];
        source[fd] = NONE;
        put_source(id);
#ifdef FOLLOWS
        take(eois);
        if
        :: bound == id ->
            bound = NONE;
            leave(eois);
            told = false;
            put_source(id)
        :: else -> leave(eois)
        fi;
#endif
        running[fd] = false
    od
}

#ifdef AT_ONCE
active proctype user0() { byte id; assign(0) }
active proctype user1() { byte id; assign_eoifd(0) }
active proctype user2() { byte id; deassign(0) }
active proctype user3() { byte id; assign(1) }
#else
active proctype user() {
    byte id;
    bool did[4];
    do
    :: !did[0] -> did[0] = true; assign(0)
    :: !did[1] -> did[1] = true; assign_eoifd(0)
    :: !did[2] -> did[2] = true; deassign(0)
    :: !did[3] -> did[3] = true; assign(1)
    :: did[0] && did[1] && did[2] && did[3] -> break
    od
}
#endif
