"""A PCI thermometer: `vintx serve thermometer.py:Thermometer`. docs/device-author.md leads through it.

BAR0   0x0  temperature, hundredths of a degree          (read)
       0x4  limit: above it, it is too hot               (read, write)
       0x8  status: bit 0 is set once it was too hot     (read)
       0xc  acknowledge: ones clear bits of the status   (write)
"""

from devices import IoRegion, PciDevice, Property

TEMPERATURE, LIMIT, STATUS, ACKNOWLEDGE = 0x0, 0x4, 0x8, 0xC
TOO_HOT = 1
COLDEST, HOTTEST, STEP = 2000, 3000, 50


class Thermometer(PciDevice):
    """It gets warmer and warmer until it is cooled down. INTx is high while a bit of the status is set."""

    driver = "thermometer"
    description = "thermometer with an alarm"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x7E40, 0x1180, 1
    properties = (*PciDevice.properties, Property("period-us", "uint32", 100_000, "how often it measures"))

    def realize(self, board):
        super().realize(board)
        self.register_bar(0, IoRegion("thermometer", 0x1000, self.read, self.write, min_access=4, max_access=4))
        self.timer = board.clock.timer("thermometer", self.measure)
        self.holdings.hold("timer", "thermometer", self.timer.cancel)
        self.power_on()

    def power_on(self):
        self.temperature, self.limit, self.status = COLDEST, 2500, 0
        self.wait()

    def reset(self):
        super().reset()
        self.power_on()

    def wait(self):
        self.timer.arm(self.board.clock.now() + 1000 * self.values["period-us"])

    def measure(self):
        self.temperature = self.temperature + STEP if self.temperature < HOTTEST else COLDEST
        if self.temperature > self.limit:
            self.status |= TOO_HOT
        self.set_intx(self.status != 0)
        self.wait()

    def read(self, offset, size):
        return {TEMPERATURE: self.temperature, LIMIT: self.limit, STATUS: self.status}.get(offset, 0)

    def write(self, offset, size, value):
        if offset == LIMIT:
            self.limit = value
        elif offset == ACKNOWLEDGE:
            self.status &= ~value
            self.set_intx(self.status != 0)
