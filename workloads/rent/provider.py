"""The interface of a provider of machines."""

from dataclasses import dataclass
from typing import Protocol

# A machine in one of these states will never train.
LOST = ("terminated", "terminating", "preempted", "unhealthy")


def dollars(amount: float) -> str:
    return "under a cent" if 0 < amount < 0.01 else f"${amount:,.2f}"


@dataclass(frozen=True)
class Offer:
    """A type of machine that is available in a region now; price in dollars an hour."""

    type: str
    region: str
    price: float
    gpus: int = 0
    gpu_memory: int = 0  # GiB of one GPU, 0 where its description does not tell
    text: str = ""

    def __str__(self) -> str:
        return f"{self.type} in {self.region}, ${self.price:.2f} an hour"


@dataclass(frozen=True)
class RentedMachine:
    """A machine as its provider lists it, without secret fields."""

    id: str
    name: str = ""
    status: str = ""
    address: str = ""
    region: str = ""
    type: str = ""
    price: float = 0.0


@dataclass(frozen=True)
class Request:
    """A requested machine. max_price: dollars an hour, 0 for any; memory: GiB of a GPU at least.

    hours: from the launch to the last copy, 0 for no end; tries: machines, until one trains;
    wait_seconds: for capacity.
    """

    types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    max_price: float = 0.0
    memory: int = 0
    hours: float = 0.0
    tries: int = 1
    wait_seconds: float = 0.0

    def suits(self, offer: Offer) -> bool:
        if self.types and offer.type not in self.types:
            return False
        if self.regions and offer.region not in self.regions:
            return False
        if self.max_price and offer.price > self.max_price:
            return False
        # Without a named type: GPUs that are large enough, in machines with the usual CPUs.
        usual = offer.gpus > 0 and offer.gpu_memory >= self.memory and "gh200" not in offer.type
        return bool(self.types) or usual

    def __str__(self) -> str:
        parts = [", ".join(self.types) or "any GPU"]
        parts += [f"of {self.memory} GiB or more"] if self.memory and not self.types else []
        parts += [f"in {', '.join(self.regions)}"] if self.regions else []
        parts += [f"up to ${self.max_price:.2f} an hour"] if self.max_price else []
        return " ".join(parts)


class NoCapacity(Exception):
    """No capacity, even for a listed offer: somebody else was quicker."""


class Provider(Protocol):
    """Rents machines; raises UserError for mistakes of the user, Retry for temporary failures."""

    name: str
    bills: bool  # whether a machine is billed until it is ended
    end_by_hand: str  # command to type to end MACHINE without this program

    def ready(self) -> None:
        """Raise UserError where a lease could not begin: a wrong key, no ssh key."""

    def offers(self) -> list[Offer]:
        """Offers that are available now."""

    def launch(self, offer: Offer, name: str) -> str:
        """Rent one machine and return its id; raises NoCapacity where the offer is gone."""

    def machines(self) -> list[RentedMachine]:
        """All machines of the account."""

    def machine(self, id: str) -> RentedMachine | None:
        """One machine; None where it is gone."""

    def terminate(self, id: str) -> None:
        """Request its end; success only means that the request was received."""
