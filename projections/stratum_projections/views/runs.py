"""Runs, their steps and their timers, as the journals tell them.

Times are those of the agent's clock (`stored` of `events` is the server's), so that `due` and
`fired` compare. What a run says of itself is all that is known: a run that is in hand but has not
journaled anything yet is not there, and one whose owner was killed is `running` until another owner
takes it over. A fork's rows begin where it was forked; what it shares is its former run's.

`runs`, one row a run:
  run, agent       its id, unique for the agent, and whose it is
  status           running; waiting (let go of until something comes); paused (on request);
                   parked (set aside with `error`, until it is resumed); or how it ended: completed,
                   failed, cancelled, continued (as the run `next`)
  event, event_seq, event_type, handler
                   the id, sequence in the log and type of the event that started it, and the
                   handler's type; NULL where the journal does not say
  started, ended   of its first and last entry; a first step's seconds lie before its entry. `ended`
                   and `duration_seconds` between them are NULL until it ends
  steps, attempts  steps that it has done; attempts at steps, those that failed too
  resumed, takeovers
                   how often it was taken up again; how often of these from an owner that was gone
  sent, noted      messages and memory events that it committed
  parent           the run that sent `event`; NULL where no run did
  forked_from, forked_at
                   the run that it was forked from and the position there; NULL for others
  next             the run that goes on in its place; NULL but for `continued`
  error            why it failed, was cancelled or is parked, as "Type: text"; else NULL
  waits_for, until what it waits for or tries again, by `label` of `steps`, and when the first of
                   these is over; NULL where it waits for nothing, or for ever
  instance         who owned it last
  correlationid    the id of the event at the root of the conversation
  first_seq, last_seq
                   its first and last entries in the log; inputs count

`steps`, one row a call of a run that is journaled: steps, sleeps, waits, calls of other agents:
  run, agent, n    whose it is and its position in the handler (`3`, or `3.1.2` in a branch)
  kind, name       step, sleep, wait (for the event types `name`), call (`name` is "type at
                   agent"), undo (a compensation); NULL where the entry's data is in a blob
  label            both, as in `step pay`
  status           completed; failed (for good); retrying (an attempt failed, the next is due);
                   waiting; timeout (a wait or call that took too long); abandoned (the run ended)
  attempts         tries of a step or undo so far, 0 for others
  started, ended   of the first attempt or of the wait; `ended` is NULL while it is open
  seconds          spent in its attempts; for others between `started` and `ended`; NULL if unknown
  due              when it is tried again or the wait is over; NULL if decided, or not limited
  error            of the last attempt that failed, also where a later one did not; else NULL
  first_seq, last_seq
                   its first and last entry in the log

`timers`, one row for each time that a run was given: sleeps, waits and calls with a limit, steps
that are tried again:
  run, agent, n    the call that it belongs to
  name             the timer's, as in TIMERS (one of a few seconds is kept by the worker itself)
  kind, call       sleep, wait, call, step or undo, and the call's name
  set, set_seq     when it was set, and by which entry
  due              when it is to fire
  state            set; fired (or its time was over otherwise); cancelled (what was waited for came
                   first, or the run ended)
  fired            when it fired, at the latest; NULL if it has not
  closed_seq       the entry that says so; NULL while it is set
The timers set as of any moment are what is due then: `select agent, run, call, due from timers
where state = 'set' order by due`. Schedules of agents are no timers of runs.

`runs_open` and `steps_open` hold what later entries may go on with, so that a batch looks at what
is open and never at all that has ended.
"""

from stratum_projections.projection import Projection, Step
from stratum_projections.views import entry, journal

_CALLS, _SETS, _FIRED, _ENDS, _OTHERS = (
    tuple(entry.PREFIX + kind for kind in kinds)
    for kinds in (
        entry.CALLS, ("waiting", "step.failed"), ("fired",), entry.ENDS, entry.OTHERS,
    )
)  # fmt: skip

_IN_SECONDS = "(epoch_us({until}) - epoch_us({since})) / 1e6"
_STATUS = "case when {status} = 'waiting' and {paused} then 'paused' else {status} end"
_SPENT = f"""case when {{kind}} in ('step', 'undo') then {{spent}} / 1e6
    else {_IN_SECONDS} end"""
_LABEL = "nullif(concat_ws(' ', b.kind, nullif(b.name, b.kind)), '')"

# Pieces that lie on something open; `place` is where that stands in its table.
_RUNS_GO_ON = """(
    select b.* exclude (first_seq), b.first_seq is not null as own, o.first_seq as place,
        o.status as was, coalesce(b.paused, o.paused) as pausing
    from batch b join runs_open o on o.agent = b.agent and o.run = b.run
    where b.what = 'run' and b.goes_on
)"""
_STEPS_GO_ON = f"""(
    select b.*, {_LABEL} as label, o.first_seq as place, o.timer_seq as older
    from batch b join steps_open o on o.agent = b.agent and o.run = b.run and o.n = b.n
    where b.what = 'step' and b.goes_on
)"""

_BEGIN_RUNS = f"""
    insert into runs by name
    select b.run, b.agent,
        {_STATUS.format(status="b.status", paused="coalesce(b.paused_if_new, false)")} as status,
        b.event, b.event_seq, b.event_type, b.handler, b.started, b.ended,
        {_IN_SECONDS.format(until="b.ended", since="b.started")} as duration_seconds,
        b.steps, b.attempts, b.resumed, b.takeovers, b.sent, b.noted, b.parent, b.forked_from,
        b.forked_at, b.next, b.error, b.instance, b.correlationid, b.first_seq, b.last_seq
    from batch b left join runs_open o on o.agent = b.agent and o.run = b.run
    where b.what = 'run' and b.first_seq is not null and not (b.goes_on and o.run is not null)
"""
_RUNS_CHANGE = f"""
    update runs
    set status = {_STATUS.format(status="coalesce(b.status, b.was)", paused="b.pausing")},
        ended = b.ended,
        duration_seconds = {_IN_SECONDS.format(until="b.ended", since="runs.started")},
        steps = runs.steps + b.steps, attempts = runs.attempts + b.attempts,
        resumed = runs.resumed + b.resumed,
        takeovers = runs.takeovers + b.takeovers
            + (coalesce(b.resumed_first, false) and b.was = 'running')::bigint,
        sent = runs.sent + b.sent, noted = runs.noted + b.noted, next = b.next,
        error = case when b.own then b.error else runs.error end, waits_for = null, until = null,
        instance = coalesce(b.instance, runs.instance), last_seq = b.last_seq
    from {_RUNS_GO_ON} b
    where runs.first_seq = b.place
"""
_BEGIN_STEPS = f"""
    insert into steps by name
    select b.run, b.agent, b.n, b.kind, b.name, {_LABEL} as label, b.status, b.attempts, b.started,
        b.ended, {_SPENT.format(kind="b.kind", spent="b.spent_us", until="b.ended", since="b.started")}
            as seconds,
        b.due, b.error, b.first_seq, b.last_seq
    from batch b left join steps_open o on o.agent = b.agent and o.run = b.run and o.n = b.n
    where b.what = 'step' and not (b.goes_on and o.n is not null)
"""
_STEPS_CHANGE = f"""
    update steps
    set status = b.status, attempts = greatest(steps.attempts, b.attempts), ended = b.ended,
        seconds = {
    _SPENT.format(
        kind="coalesce(steps.kind, b.kind)",
        until="b.ended",
        since="steps.started",
        spent="coalesce(round(steps.seconds * 1e6) + b.spent_us, b.spent_us, "
        "round(steps.seconds * 1e6))",
    )
},
        kind = coalesce(steps.kind, b.kind), name = coalesce(steps.name, b.name),
        label = coalesce(steps.label, b.label),
        due = b.due, error = coalesce(b.error, steps.error), last_seq = b.last_seq
    from {_STEPS_GO_ON} b
    where steps.first_seq = b.place
"""
_SET_TIMERS = """
    insert into timers by name
    select run, agent, n, timer as name, kind, name as call, started as set, first_seq as set_seq,
        due, coalesce(closed, 'set') as state,
        case closed when 'fired' then closed_time end as fired, closed_seq
    from batch where what = 'timer'
"""
# The first that says so counts: the timer itself, what came of the call, or the end of the run.
_TIMERS_ARE_OVER = f"""
    update timers
    set state = b.closed, closed_seq = b.seq, fired = case b.closed when 'fired' then b.time end
    from (
        select place, min(seq) as seq, arg_min(closed, seq) as closed, arg_min(time, seq) as time
        from (
            select older as place, closed_seq as seq, closed, closed_time as time
            from {_STEPS_GO_ON} where older is not null and closed is not null
            union all
            select o.timer_seq, b.closed_seq, b.closed, b.closed_time
            from batch b
            join steps_open o on o.agent = b.agent and o.run = b.run and o.timer = b.timer
            where b.what = 'fired'
            union all
            select o.timer_seq, b.ended_seq, 'cancelled', b.ended
            from batch b join steps_open o on o.agent = b.agent and o.run = b.run
            where b.what = 'run' and b.goes_on and b.ended is not null and o.timer_seq is not null
        )
        group by place
    ) b
    where timers.set_seq = b.place
"""
_ABANDON_STEPS = f"""
    update steps
    set status = 'abandoned', ended = b.ended, due = null,
        seconds = {
    _SPENT.format(kind="kind", until="b.ended", since="steps.started", spent="round(seconds * 1e6)")
}
    from (
        select o.first_seq as place, b.ended
        from batch b join steps_open o on o.agent = b.agent and o.run = b.run
        where b.what = 'run' and b.goes_on and b.ended is not null and not exists (
            from batch s where s.what = 'step' and s.goes_on
                and s.agent = o.agent and s.run = o.run and s.n = o.n)
    ) b
    where steps.first_seq = b.place
"""
_CLOSE_STEPS = """
    delete from steps_open o using batch b
    where b.what = 'run' and b.goes_on and b.ended is not null
        and o.agent = b.agent and o.run = b.run
"""
_FORGET_TIMERS = """
    update steps_open o set timer = null, timer_seq = null from batch b
    where b.what = 'fired' and o.agent = b.agent and o.run = b.run and o.timer = b.timer
"""
_KEEP_STEPS = f"""
    merge into steps_open o
    using (select b.*, {_LABEL} as label from batch b where b.what = 'step' and b.latest) b
    on o.agent = b.agent and o.run = b.run and o.n = b.n
    when matched and b.ended is not null then delete
    when matched then update set
        first_seq = case when b.goes_on then o.first_seq else b.first_seq end,
        label = case when b.goes_on then coalesce(o.label, b.label) else b.label end,
        due = b.due, timer = b.timer, timer_seq = b.timer_seq
    when not matched and b.ended is null then
        insert (agent, run, n, first_seq, label, due, timer, timer_seq)
        values (b.agent, b.run, b.n, b.first_seq, b.label, b.due, b.timer, b.timer_seq)
"""
_KEEP_RUNS = """
    merge into runs_open o using (select * from batch where what = 'run' and latest) b
    on o.agent = b.agent and o.run = b.run
    when matched and b.ended is not null then delete
    when matched and b.goes_on then update set
        status = coalesce(b.status, o.status), paused = coalesce(b.paused, o.paused)
    when matched then update set
        first_seq = b.first_seq, status = b.status, paused = coalesce(b.paused_if_new, false)
    when not matched and b.ended is null and b.first_seq is not null then
        insert (agent, run, first_seq, status, paused)
        values (b.agent, b.run, b.first_seq, b.status, coalesce(b.paused_if_new, false))
"""
_TELL_WAITS = """
    update runs set waits_for = w.labels, until = w.due
    from (
        select o.first_seq as place, string_agg(s.label, ', ' order by s.first_seq) as labels,
            min(s.due) as due
        from runs_open o
        join steps_open s on s.agent = o.agent and s.run = o.run
        join batch b on b.agent = o.agent and b.run = o.run
        where b.what = 'run' and b.latest and o.status <> 'parked'
        group by o.first_seq
    ) w
    where runs.first_seq = w.place
"""

RUNS = Projection(
    name="runs",
    blobs=(),
    roles=("run",),
    types=entry.TYPES,
    prepare=journal.prepare,
    tables={
        "runs": """
            run varchar, agent varchar, status varchar, event varchar, event_seq bigint,
            event_type varchar, handler varchar, started timestamptz, ended timestamptz,
            duration_seconds double, steps bigint, attempts bigint, resumed bigint,
            takeovers bigint, sent bigint, noted bigint, parent varchar, forked_from varchar,
            forked_at varchar, next varchar, error varchar, waits_for varchar, until timestamptz,
            instance varchar, correlationid varchar, first_seq bigint, last_seq bigint
        """,
        "steps": """
            run varchar, agent varchar, n varchar, kind varchar, name varchar, label varchar,
            status varchar, attempts bigint, started timestamptz, ended timestamptz,
            seconds double, due timestamptz, error varchar, first_seq bigint, last_seq bigint
        """,
        "timers": """
            run varchar, agent varchar, n varchar, name varchar, kind varchar, call varchar,
            set timestamptz, set_seq bigint, due timestamptz, state varchar, fired timestamptz,
            closed_seq bigint
        """,
        "runs_open": """
            agent varchar, run varchar, first_seq bigint, status varchar, paused boolean
        """,
        "steps_open": """
            agent varchar, run varchar, n varchar, first_seq bigint, label varchar,
            due timestamptz, timer varchar, timer_seq bigint
        """,
    },
    statements=(
        Step(_BEGIN_RUNS, (*_CALLS, *_ENDS, *_OTHERS)),
        _RUNS_CHANGE,
        Step(_BEGIN_STEPS, _CALLS),
        Step(_STEPS_CHANGE, _CALLS),
        Step(_SET_TIMERS, _SETS),
        Step(_TIMERS_ARE_OVER, (*_CALLS, *_FIRED, *_ENDS)),
        Step(_ABANDON_STEPS, _ENDS),
        Step(_CLOSE_STEPS, _ENDS),
        Step(_FORGET_TIMERS, _FIRED),
        Step(_KEEP_STEPS, _CALLS),
        _KEEP_RUNS,
        _TELL_WAITS,
    ),
)
