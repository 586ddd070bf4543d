// The first thing that a component runs: the host's functions come in, and what would differ in a replay is replaced,
// before anything of the plugin's own.

import { get as configGet } from 'millrace:processor/config@0.1.0';
import { write } from 'millrace:processor/log@0.1.0';
import { get as stateGet, scan as stateScan } from 'millrace:processor/state@0.1.0';

import { install } from './globals.mjs';
import { provideOnceRunning } from './host.mjs';

/** `grants`: what the plugin may have real ones of. */
export function begin(grants) {
  provideOnceRunning({ log: write, stateGet, stateScan, configGet });
  const [clocks, chances, requests] = ['clock', 'random', 'http'].map((grant) => !grants.includes(grant));
  install({ outside: 'throws', clocks, chances, requests });
}
