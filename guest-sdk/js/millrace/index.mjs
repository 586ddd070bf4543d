// What a plugin imports.

export { ChannelEntry } from './channel.mjs';
export { Failure } from './failure.mjs';
export { config, log } from './host.mjs';
export { parse as parseJson, stableJson, stringify as toJson } from './json.mjs';
export { bool, bytes, float, int, json, table, text, timestamp } from './manifest.mjs';
export { processor } from './processor.mjs';
export { formatTime, hasClock, parseTime } from './time.mjs';
