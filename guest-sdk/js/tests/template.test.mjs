import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';

import { Driver, readEvents } from '../millrace/testing/driver.mjs';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));

test('the_template_does_what_it_expects_of_itself', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'template-'));
  try {
    cpSync(path('../template'), dir, { recursive: true });
    symlinkSync(path('../millrace'), join(dir, 'millrace'));
    const { handler } = await import(pathToFileURL(join(dir, 'src/plugin.mjs')));
    const driver = new Driver(handler);
    driver.send(readEvents(join(dir, 'tests/events.ndjson')).filter((of) => of.type.startsWith('order.')));
    const expected = JSON.parse(readFileSync(join(dir, 'tests/expected.json'), 'utf8'));
    const rows = Object.entries(driver.rows('plugin_name')).map(([key, row]) => ({ key, version: 0, ...row }));
    assert.deepEqual(rows, expected.rows.plugin_name);
    assert.deepEqual(JSON.parse(new TextDecoder().decode(driver.saved().state)), expected.state.value);
    assert.equal(driver.saved().contentType, expected.state.content_type);
    const [tenth] = driver.emitted;
    const [told] = expected.emitted;
    assert.deepEqual([tenth.type, tenth.aggId, Number(tenth.version), tenth.json()], [told.type, told.agg_id, told.version, told.payload]);
    assert.equal(driver.emitted.length, expected.emitted.length);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
