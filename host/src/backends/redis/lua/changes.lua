-- Reads the entries of a change stream after a position.
--
-- KEYS: meta, events, the stream's index
-- ARGV: epoch, after, up to, most events, most bytes, the tenant
-- Answers {0, trimmed, whether it stopped before the end, whether something before the first event was removed by
-- somebody else, up to where the stream has dropped entries, position, bytes, position, bytes...}; {1, epoch} when the log
-- is another one. What is trimmed is left out.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'trimmed')
if meta[1] ~= ARGV[1] then return {1, meta[1] or ''} end
local after, events_max, bytes_max = math.max(tonumber(ARGV[2]), tonumber(meta[2])), tonumber(ARGV[4]), tonumber(ARGV[5])
local answer = {0, meta[2], 0, 0, '0'}
if redis.call('EXISTS', KEYS[3]) == 1 then
  local about = redis.call('XINFO', 'STREAM', KEYS[3])
  for i = 1, #about, 2 do
    if about[i] == 'max-deleted-entry-id' then answer[5] = string.match(about[i + 1], '^%d+') end
  end
end
local events, bytes = 0, 0
local from = string.format('%.0f-0', after + 1)
local id, first, whole
while true do
  local page = redis.call('XRANGE', KEYS[3], from, ARGV[3], 'COUNT', 64)
  for _, found in ipairs(page) do
    if events >= events_max or bytes >= bytes_max then
      answer[3] = 1
      return answer
    end
    local position = string.match(found[1], '^%d+')
    -- Many events in a row may lie in one entry.
    if not id or tonumber(position) > id then
      local entry = redis.call('XRANGE', KEYS[2], position .. '-0', '+', 'COUNT', 1)[1]
      id, first = tonumber(position), nil
      if entry and entry[2][2] == ARGV[6] then
        local last, count = string.match(entry[1], '^(%d+)-(%d+)$')
        id, first, whole = tonumber(last), last - count + 1, entry[2][6]
      end
    end
    if first and tonumber(position) >= first then
      local offset, length = string.match(found[2][2], '^(%d+) (%d+)$')
      local body = string.sub(whole, offset + 1, offset + length)
      answer[#answer + 1] = position
      answer[#answer + 1] = body
      events, bytes = events + 1, bytes + #body
    elseif events > 0 then
      -- The next page begins with what is missing.
      answer[3] = 1
      return answer
    else
      answer[4], id = 1, nil
    end
  end
  if #page < 64 then return answer end
  from = '(' .. page[64][1]
end
