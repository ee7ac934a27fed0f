"""Which memories belong together under one parent, and what the parent says. Pure functions.

A group is a set of memories of which every two are about the same matter (complete linkage), so that likeness never
runs along a chain; it has at most MAX_GROUP members, and groups are never merged with each other. A parent says nothing
of its own: its content is its children's.
"""

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import mul

from activities.embedding_models import relevance
from activities.models import MemoryChild, MemoryGroup
from activities.statements import same_matter

DUPLICATE = 0.72
"""Relevance of two statements to each other from which their words decide whether they say the same: 0.93 by E5."""
RELATED = 0.48
"""The same for whether they are about the same matter: 0.87 by E5."""
MAX_GROUP = 8
"""Most children of a parent."""
GROUP_CHARACTERS = 4_000
"""Most text of a parent."""


@dataclass(frozen=True)
class Said:
    """A memory of what was said, as far as it matters for consolidation.

    Attributes:
        embedding: Packed, of unit length; empty for a vector of zeros.
        parent: The parent's id.
        apart: Ids of the parents that it was split from: it is never again put together with their other children.
    """

    memory_id: str
    content: str
    created_at: datetime
    embedding: bytes
    parent: str | None = None
    apart: frozenset[str] = frozenset()


def duplicate_cosine(unrelated: float) -> float:
    """Cosine from which two statements may be the same one, given that of unrelated texts."""
    return unrelated + DUPLICATE * (1 - unrelated)


def belong_together(left: Said, right: Said, unrelated: float) -> bool:
    """Whether two memories may have the same parent. Symmetric; not transitive."""
    if left.apart & right.apart or not (left.embedding and right.embedding):
        return False
    if not same_matter(left.content, right.content):
        return False
    return relevance(_cosine(left, right), unrelated) >= RELATED


def _cosine(left: Said, right: Said) -> float:
    return float(sum(map(mul, array("f", left.embedding), array("f", right.embedding))))


def group_of(memory: Said, others: Iterable[Said], unrelated: float) -> tuple[str, list[Said]] | None:
    """The group that a memory belongs to, or None where it is in one already or belongs to none.

    It joins the group of the memory nearest to it whose members it all belongs to, or founds one with that memory. Then
    whoever stands alone and belongs to all members joins too. Once every memory was placed like this, placing them
    again changes nothing.

    Args:
        others: The user's memories around it, whole groups always.

    Returns:
        Id of the parent, and all members. The id derives from the members that the group is founded with, so that
        founding it twice makes one.
    """
    if memory.parent is not None:
        return None
    all_others = sorted(others, key=lambda one: (-_cosine(memory, one) if one.embedding else 0, one.memory_id))
    near = [one for one in all_others if belong_together(memory, one, unrelated)]
    for nearest in near:
        members = [memory, nearest]
        if nearest.parent is not None:
            members = [memory, *(one for one in all_others if one.parent == nearest.parent)]
        if len(members) <= MAX_GROUP and all(belong_together(memory, one, unrelated) for one in members[1:]):
            break
    else:
        return None
    parent = members[1].parent
    for one in near:
        fits = one.parent is None and one not in members and len(members) < MAX_GROUP
        if fits and all(belong_together(one, member, unrelated) for member in members):
            members.append(one)
    return parent or _parent_id(members), members


def _parent_id(members: Sequence[Said]) -> str:
    founders = sorted(member.memory_id for member in members)
    return "group-" + hashlib.sha256(json.dumps(founders).encode()).hexdigest()[:32]


def newest_first(members: Iterable[Said]) -> list[MemoryChild]:
    """A group's members as they are shown."""
    ordered = sorted(members, key=lambda one: (one.created_at, one.memory_id), reverse=True)
    return [MemoryChild(memory_id=one.memory_id, content=one.content, created_at=one.created_at) for one in ordered]


def group_content(children: Sequence[MemoryChild]) -> str:
    """What a parent says: its children's contents as they are, newest first, as many whole ones as have room."""
    content = children[0].content
    for child in children[1:]:
        if len(content) + 1 + len(child.content) > GROUP_CHARACTERS:
            break
        content += "\n" + child.content
    return content


def may_group(parent: MemoryGroup, members: Sequence[Said], before: Collection[str]) -> bool:
    """Whether a parent can be stored as it was planned: nothing it was made of has changed since.

    Args:
        members: Its planned children as they are now.
        before: Ids of the children that it has now.
    """
    planned = {child.memory_id for child in parent.children}
    return (
        newest_first(members) == parent.children
        and group_content(parent.children) == parent.content
        and set(before) <= planned
        and all(one.parent in (None, parent.memory_id) and parent.memory_id not in one.apart for one in members)
    )
