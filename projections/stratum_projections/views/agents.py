"""Every name that appears as an agent, and what it has done.

`agents`, one row a name:
  name             as it stands in subjects; also one that was only written to
  first_seen, last_seen
                   when it wrote something itself, by the server's clock; NULL if it never did
  sent, received   messages from it, and messages in its inbox
  notes            notes it made; revisions do not count
  runs, failed     runs that were completed, and runs that failed
  dead             dead letters about messages for it
  last_seq         the last event from it or for it
"""

from stratum_projections.projection import Projection

_COUNTED = {
    "sent": "sent",
    "received": "inbox",
    "notes": "stratum.memory.noted",
    "runs": "stratum.run.completed",
    "failed": "stratum.run.failed",
    "dead": "stratum.dead.lettered",
}
"""The column, and what is counted in it: a type under the agent's own subject, or a message."""

AGENTS = Projection(
    name="agents",
    blobs=(),
    version=2,
    roles=("inbox", "topic", "memory", "run", "dead"),
    tables={
        "agents": f"""
            name varchar, first_seen timestamptz, last_seen timestamptz,
            {", ".join(f"{column} bigint" for column in _COUNTED)}, last_seq bigint
        """
    },
    statements=(
        f"""
        merge into agents a
        using (
            select name, min(stored) filter (where what <> 'inbox') as first_seen,
                max(stored) filter (where what <> 'inbox') as last_seen,
                {", ".join(f"count(*) filter (where what = '{w}') as {c}" for c, w in _COUNTED.items())},
                max(seq) as last_seq
            from (
                select seq, stored, unnest([sender, agent]) as name,
                    unnest(['sent', case role when 'inbox' then 'inbox' else type end]) as what
                from batch
            )
            where name is not null
            group by name
        ) b on a.name = b.name
        when matched then update set
            first_seen = least(a.first_seen, b.first_seen),
            last_seen = greatest(a.last_seen, b.last_seen),
            {", ".join(f"{column} = a.{column} + b.{column}" for column in _COUNTED)},
            last_seq = b.last_seq
        when not matched then insert by name
        """,
    ),
)
