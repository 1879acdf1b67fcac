"""The user's own machine as a provider: nothing is rented, billed or ended."""

from workloads.rent.provider import Offer, RentedMachine


class OwnMachine:
    """One machine, by its name or address for ssh."""

    name, bills = "ssh", False
    end_by_hand = ""

    def __init__(self, address: str) -> None:
        self._address = address

    def ready(self) -> None:
        return None

    def offers(self) -> list[Offer]:
        return [Offer(type=self._address, region="here", price=0.0)]

    def launch(self, offer: Offer, name: str) -> str:
        return self._address

    def machines(self) -> list[RentedMachine]:
        return [RentedMachine(self._address, status="active", address=self._address)]

    def machine(self, id: str) -> RentedMachine | None:
        return self.machines()[0]

    def terminate(self, id: str) -> None:
        return None
