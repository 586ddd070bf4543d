// Builds a plugin's modules to a component:
//
//   node build.mjs --project DIR --entry src/plugin.mjs --wit DIR --out FILE [--grants clock,http]
//
// Promises: a plugin without grants imports nothing but the world; the project's folder is only read; `FILE` appears in
// one step; what is wrong with the plugin is said on standard error, with its own paths. Two builds of the same sources
// differ: the engine's memory is part of a component. Deliberately absent: installing what this imports, and looking at
// what a component may be.

import { cp, mkdir, mkdtemp, readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, normalize, resolve, sep } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { componentize } from '@bytecodealliance/componentize-js';

const WORLD = 'processor';
const PACKAGE = 'package millrace:processor@0.1.0;';
const FEATURES = ['stdio', 'random', 'clocks', 'http', 'fetch-event'];
// What a grant lets in. `console` is the operator's log in any case.
const FEATURE_OF_GRANT = { clock: 'clocks', random: 'random', http: 'http' };
// Only at the top of the project: further down a folder may be called as it likes.
const LEFT_OUT = ['target', 'tests'];
const FILES_MAX = 2_000;
const FOLDERS_DEEP_MAX = 16;

class PluginError extends Error {}

/** The world as one text. A folder would do as well, were all versions of the tools to agree on how to read one. */
async function worldText(dir) {
  const names = (await readdir(dir)).filter((name) => name.endsWith('.wit')).sort();
  const texts = await Promise.all(names.map((name) => readFile(join(dir, name), 'utf8')));
  return [PACKAGE, ...texts.map((text) => text.replace(/^package .*;$/m, ''))].join('\n');
}

/** Copies a project's modules; tests and what tools leave behind are no part of a plugin. */
async function copyModules(from, to) {
  let files = 0;
  const copy = async (folder, deep) => {
    for (const entry of await readdir(join(from, folder), { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.name.startsWith('.') || entry.name === 'node_modules') continue;
      if (folder === '' && LEFT_OUT.includes(entry.name)) continue;
      // What SDK it has may be a link to one.
      const isFolder = entry.isDirectory() || (entry.isSymbolicLink() && path === 'millrace');
      if (isFolder && deep > 0 && path !== join('millrace', 'testing')) {
        await copy(path, deep - 1);
      } else if (/\.m?js$/.test(entry.name)) {
        files += 1;
        if (files > FILES_MAX) throw new PluginError(`the project has more than ${FILES_MAX} modules`);
        await mkdir(join(to, folder), { recursive: true });
        await cp(join(from, path), join(to, path), { dereference: true });
      }
    }
  };
  await copy('', FOLDERS_DEEP_MAX);
}

// What the tools say around the plugin's own mistake.
const OF_NO_USE = /initializer\.js|^Failed to initialize component|^Exception while evaluating|promises were rejected|^Promise rejected/;

const EXPORTED = 'the entry exports it: export const handler = processor(class …)';

/** The same complaint with the plugin's paths and without what is of no use to its author. */
function told(error, stage) {
  const text = String(error?.message ?? error).replaceAll(`${stage}/`, '');
  if (text.includes('does not export a "handler"')) {
    return `the entry's \`handler\` is none of a processor; ${EXPORTED}`;
  }
  if (!text.includes('Exception while evaluating')) return text;
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !OF_NO_USE.test(line));
  const isWithoutHandler = text.includes("doesn't provide an export named: 'handler'");
  if (isWithoutHandler) lines.push(EXPORTED);
  if (/Error loading module "[^"]*\.(?!m?js")\w+"/.test(text)) {
    lines.push('only modules (.mjs, .js) are part of a component; data goes into one, as `export default …`');
  }
  return ["the plugin's modules cannot be evaluated:", ...lines].join('\n');
}

async function build({ project, entry, wit, out, grants }) {
  const path = normalize(entry);
  if (path.startsWith('..')) throw new PluginError(`the entry ${entry} lies outside of the project`);
  const stage = await mkdtemp(join(tmpdir(), 'millrace-js-'));
  const home = process.cwd();
  try {
    await copyModules(project, stage);
    await readFile(join(stage, path)).catch(() => {
      throw new PluginError(`there is no module ${entry} in ${project}`);
    });
    await readFile(join(stage, 'millrace/entry.mjs')).catch(() => {
      throw new PluginError(`there is no SDK in ${join(project, 'millrace')}`);
    });
    const [begin, main] = ['begin.mjs', 'main.mjs'].map((name) => join(stage, 'millrace', name));
    await writeFile(begin, `import { begin } from './entry.mjs';\nbegin(${JSON.stringify(grants)});\n`);
    const handler = JSON.stringify(`../${path.split(sep).join('/')}`);
    await writeFile(main, `import './begin.mjs';\nexport { handler } from ${handler};\n`);
    // Modules are named by their paths from here.
    process.chdir(stage);
    const wanted = grants.map((grant) => FEATURE_OF_GRANT[grant]);
    const { component } = await componentize({
      sourcePath: join(process.cwd(), 'millrace/main.mjs'),
      witWorld: await worldText(wit),
      worldName: WORLD,
      disableFeatures: FEATURES.filter((feature) => !wanted.includes(feature)),
    });
    await mkdir(dirname(out), { recursive: true });
    const half = `${out}.${process.pid}.half`;
    await writeFile(half, component);
    await rename(half, out);
  } catch (error) {
    throw error instanceof PluginError ? error : new PluginError(told(error, stage), { cause: error });
  } finally {
    process.chdir(home);
    await rm(stage, { recursive: true, force: true });
  }
}

const { values } = parseArgs({
  options: Object.fromEntries(['project', 'entry', 'wit', 'out', 'grants'].map((name) => [name, { type: 'string' }])),
});
const missing = ['project', 'entry', 'wit', 'out'].find((name) => values[name] === undefined);
try {
  if (missing !== undefined) throw new PluginError(`--${missing} is needed`);
  await build({
    project: resolve(values.project),
    entry: values.entry,
    wit: resolve(values.wit),
    out: resolve(values.out),
    grants: (values.grants ?? '').split(',').filter((grant) => grant !== ''),
  });
} catch (error) {
  if (!(error instanceof PluginError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
}
