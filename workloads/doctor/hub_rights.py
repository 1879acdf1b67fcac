"""Who may write to a repository of the hub, by what the hub says of a token; standard library."""

from collections.abc import Mapping
from typing import Any

from workloads.errors import UserError


def check_writer(who: Mapping[str, Any], repo_id: str, hub: str) -> str:
    """The account that may write to a repository; UserError where the token's may not.

    who: the hub's answer to `whoami-v2`. Judged by the token's role and the account's
    organisations, so that no training ends with a refusal. A repository of that name need not be
    there yet. hub: its address.
    """
    name = str(who.get("name"))
    owner = repo_id.rpartition("/")[0] or name
    roles = {team.get("name"): team.get("roleInOrg") for team in who.get("orgs") or []}
    if owner != name and owner not in roles:
        known = ", ".join([name, *sorted(map(str, roles))])
        raise UserError(
            f"export.hub_model_id: expected a repository of {known}, whose token this is, found "
            f"{repo_id}; correct the owner, or set a token of {owner}"
        )
    if owner != name and roles[owner] == "read":
        raise UserError(
            f"export.hub_model_id: expected an organisation that {name} may write to, found "
            f"{owner}, where the role is read; ask for the role of a contributor"
        )
    access = (who.get("auth") or {}).get("accessToken") or {}
    role = access.get("role")
    if role == "read" or (role == "fineGrained" and not _is_granted(access, owner, repo_id)):
        raise UserError(
            f"expected a token that may write to {repo_id}, found one of {name} that may only read "
            f"there; make one at {hub}/settings/tokens and set HF_TOKEN"
        )
    return name


def _is_granted(access: Mapping[str, Any], owner: str, repo_id: str) -> bool:
    """Whether a fine-grained token names the right to write to the owner or the repository."""
    for grant in (access.get("fineGrained") or {}).get("scoped") or []:
        entity = (grant.get("entity") or {}).get("name")
        if entity in (owner, repo_id) and "repo.write" in (grant.get("permissions") or []):
            return True
    return False
