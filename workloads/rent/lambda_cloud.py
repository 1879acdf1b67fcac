"""Lambda as a provider: its offers, machines and ssh keys behind the interface of a lease."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workloads.errors import UserError
from workloads.rent.lambda_api import LAUNCH, TERMINATE, ApiError, LambdaApi
from workloads.rent.provider import NoCapacity, Offer, RentedMachine

# The default differs from region to region; this one has the Python that the project needs.
IMAGE = "lambda-stack-24-04"
_NO_CAPACITY = "instance-operations/launch/insufficient-capacity"
_MEMORY = re.compile(r"\((\d+) ?GB")
# Ends a machine from the shell; an id that no longer exists is no error.
_BY_HAND = (
    """printf 'Authorization: Bearer %s' "$LAMBDA_API_KEY" | curl -H @- -H """
    """'Content-Type: application/json' -d '{{"instance_ids": ["{machine}"]}}' {url}{path}"""
)


class LambdaCloud:
    """Machines of one account.

    key: name of an ssh key of the account. file_system: one to attach at /lambda/nfs/NAME.
    """

    name, bills = "lambda", True

    def __init__(
        self,
        api: LambdaApi,
        identity: Path | None = None,
        key: str = "",
        file_system: str = "",
        image: str = IMAGE,
    ) -> None:
        self._api, self._identity, self._key = api, identity, key
        self._file_system, self._image = file_system, image
        self._region = ""  # region of the file system: a machine elsewhere cannot attach it
        self.end_by_hand = _BY_HAND.format(machine="MACHINE", url=api.url, path=TERMINATE)

    def ready(self) -> None:
        keys: list[dict[str, Any]] = self._api.call("GET", "/ssh-keys")
        if self._key:
            names = [str(key["name"]) for key in keys]
            if self._key not in names:
                raise UserError(
                    f"expected an ssh key of the account, found {self._key!r}; it has: "
                    f"{', '.join(names) or 'none'}"
                )
        else:
            self._key = self._own_key(keys)
        if self._file_system:
            systems = {
                str(system["name"]): str(system["region"]["name"])
                for system in self._api.call("GET", "/file-systems")
            }
            if self._file_system not in systems:
                raise UserError(
                    f"expected a file system of the account, found {self._file_system!r}; it has: "
                    f"{', '.join(systems) or 'none'}"
                )
            self._region = systems[self._file_system]

    def _own_key(self, keys: list[dict[str, Any]]) -> str:
        """The account's name of this machine's public key, which is added if missing."""
        assert self._identity is not None
        public = self._identity.with_name(f"{self._identity.name}.pub")
        try:
            text = public.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(
                f"{public}: expected a public key, found none ({error.strerror}); make one with "
                f"ssh-keygen -t ed25519, or name another with --identity"
            ) from None
        parts = text.split()[:2]
        for key in keys:
            if str(key.get("public_key", "")).split()[:2] == parts:
                return str(key["name"])
        # Two machines of one person have two keys, distinguished by name.
        name = f"tatara-{re.sub('[^a-zA-Z0-9]', '', parts[-1])[-12:]}"
        self._api.call("POST", "/ssh-keys", {"name": name, "public_key": text})
        return name

    def offers(self) -> list[Offer]:
        found = []
        for name, entry in self._api.call("GET", "/instance-types").items():
            kind = entry["instance_type"]
            text = str(kind.get("gpu_description") or kind.get("description") or "")
            memory = _MEMORY.search(text) or _MEMORY.search(str(kind.get("description", "")))
            for region in entry["regions_with_capacity_available"]:
                if self._region not in ("", region["name"]):
                    continue
                offer = Offer(
                    type=name,
                    region=str(region["name"]),
                    price=kind["price_cents_per_hour"] / 100,
                    gpus=int((kind.get("specs") or {}).get("gpus") or 0),
                    gpu_memory=int(memory[1]) if memory else 0,
                    text=text,
                )
                found.append(offer)
        return found

    def launch(self, offer: Offer, name: str) -> str:
        body: dict[str, Any] = {
            "region_name": offer.region,
            "instance_type_name": offer.type,
            "ssh_key_names": [self._key],
            "name": name,
            "image": {"family": self._image},
        }
        if self._file_system:
            body["file_system_names"] = [self._file_system]
        try:
            return str(self._api.call("POST", LAUNCH, body)["instance_ids"][0])
        except ApiError as error:
            if error.code == _NO_CAPACITY:
                raise NoCapacity(str(offer)) from None
            if 400 <= error.status < 500:
                raise UserError(f"{error}; correct what was asked for") from None
            raise

    def machines(self) -> list[RentedMachine]:
        return [_machine(instance) for instance in self._api.call("GET", "/instances")]

    def machine(self, id: str) -> RentedMachine | None:
        try:
            found = _machine(self._api.call("GET", f"/instances/{id}"))
        except ApiError as error:
            if error.is_missing:
                return None
            raise
        return None if found.status == "terminated" else found

    def terminate(self, id: str) -> None:
        try:
            self._api.call("POST", TERMINATE, {"instance_ids": [id]})
        except ApiError as error:
            if not error.is_missing:
                raise


def _machine(instance: Mapping[str, Any]) -> RentedMachine:
    """An instance without its JupyterLab token, which every listing contains."""
    kind = instance.get("instance_type") or {}
    return RentedMachine(
        id=str(instance["id"]),
        name=str(instance.get("name") or ""),
        status=str(instance.get("status") or ""),
        address=str(instance.get("ip") or ""),
        region=str((instance.get("region") or {}).get("name") or ""),
        type=str(kind.get("name") or ""),
        price=float(kind.get("price_cents_per_hour") or 0) / 100,
    )
