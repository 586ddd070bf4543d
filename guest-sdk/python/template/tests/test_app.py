import unittest

from app import Counter
from millrace.testing import Driver, batch_equals_singles, event


def orders(count):
    return [event("order.changed", "o-1", version) for version in range(1, count + 1)]


class CounterTests(unittest.TestCase):
    def test_an_order_is_counted_and_its_tenth_event_is_told(self):
        driver = Driver(Counter)
        driver.send(orders(12))
        self.assertEqual(driver.row("plugin_name", "o-1")["events"], 12)
        self.assertEqual(len(driver.emitted), 1)

    def test_a_restart_goes_on_where_it_was(self):
        driver = Driver(Counter)
        events = orders(11)
        driver.send(events[:9])
        driver.restart()
        driver.send(events[9:])
        self.assertEqual(driver.row("plugin_name", "o-1")["events"], 11)
        self.assertEqual(len(driver.emitted), 1)

    def test_a_batch_means_the_same_as_its_events(self):
        batch_equals_singles(Counter, orders(25))


if __name__ == "__main__":
    unittest.main()
