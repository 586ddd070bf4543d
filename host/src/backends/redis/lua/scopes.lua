-- Replaces the change scopes of the log, if they still are what a host has changed.
--
-- KEYS: meta, scopes, prefix of the last known values
-- ARGV: epoch, version that was changed, the scopes as JSON, what stands in it for the newest position, aggregates whose
--       last known values are of no use any more
-- Answers {0, version, scopes}; {1, epoch} when the log is another one; {2, version, scopes} when they are others.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'scopes')
if meta[1] ~= ARGV[1] then return {1, meta[1] or ''} end
if (meta[3] or '0') ~= ARGV[2] then return {2, meta[3] or '0', redis.call('GET', KEYS[2]) or ''} end
local scopes = string.gsub(ARGV[3], ARGV[4], meta[2])
redis.call('SET', KEYS[2], scopes)
for i = 5, #ARGV do redis.call('UNLINK', KEYS[3] .. ARGV[i]) end
return {0, tostring(redis.call('HINCRBY', KEYS[1], 'scopes', 1)), scopes}
