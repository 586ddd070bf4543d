-- Reads a tenant's entries after a position.
--
-- KEYS: meta, events, the tenant's index, tenants
-- ARGV: epoch, after, up to, most events, most bytes, the tenant
-- Answers {0, trimmed, whether it stopped at a limit, id, time, bytes, id, time, bytes...}; {1, epoch} when the log is
-- another one, or the index is gone; {2, position} when the entry that ends at this position is missing.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'trimmed')
if meta[1] ~= ARGV[1] then return {1, meta[1] or ''} end
local trimmed, after, upto = tonumber(meta[2]), tonumber(ARGV[2]), ARGV[3]
local events_max, bytes_max = tonumber(ARGV[4]), tonumber(ARGV[5])
local answer = {0, meta[2], 0}
if after < trimmed then return answer end
local events, bytes = 0, 0
local from = string.format('%.0f-0', after + 1)
while true do
  local page = redis.call('XRANGE', KEYS[3], from, upto, 'COUNT', 64)
  -- What has no index looks as if it had no events.
  if #page == 0 and redis.call('EXISTS', KEYS[3]) == 0 and redis.call('SISMEMBER', KEYS[4], ARGV[6]) == 1 then
    return {1, meta[1]}
  end
  for _, found in ipairs(page) do
    if events >= events_max or bytes >= bytes_max then
      answer[3] = 1
      return answer
    end
    local id = found[1]
    local last, count = string.match(id, '^(%d+)-(%d+)$')
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    if not entry then return {2, last} end
    local fields = entry[2]
    answer[#answer + 1] = id
    answer[#answer + 1] = fields[4]
    answer[#answer + 1] = fields[6]
    events = events + math.min(tonumber(count), tonumber(last) - after)
    bytes = bytes + #fields[6]
  end
  if #page < 64 then return answer end
  from = '(' .. page[64][1]
end
